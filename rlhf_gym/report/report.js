(() => {
  const tip = document.getElementById("tip");
  const place = (x, y) => {
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 16 + box.width > innerWidth ? x - box.width - 16 : x + 16;
    tip.style.left = Math.max(6, left) + "px";
    tip.style.top = Math.max(6, Math.min(y + 14, innerHeight - box.height - 6)) + "px";
  };
  const hide = () => { tip.hidden = true; };
  const number = (v) => {
    const size = Math.abs(v);
    const text = size >= 10000 ? Math.round(v / 1000) + "k" : String(Number(v.toPrecision(3)));
    return text.replace("-", "−");
  };
  const rows = (pairs) => {
    const table = document.createElement("table");
    for (const [name, value, kind] of pairs) {
      const row = table.insertRow();
      const first = row.insertCell();
      if (kind) {
        const dot = document.createElement("i");
        dot.className = "swatch fill-" + kind;
        first.append(dot);
      }
      for (const [i, part] of name.split(/_(ref|φ|SFT)/).entries()) {  // subscripts
        const sub = document.createElement("sub");
        sub.textContent = part;
        first.append(i % 2 ? sub : part);
      }
      row.insertCell().textContent = value;
    }
    return table;
  };

  for (const svg of document.querySelectorAll("svg.chart")) {
    const lines = JSON.parse(svg.dataset.lines);
    const pointer = svg.querySelector(".pointer");
    if (!lines.length) continue;
    const make = (name, attributes) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const key in attributes) element.setAttribute(key, attributes[key]);
      pointer.append(element);
    };
    const show = (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
      const nearest = lines.filter(([, , points]) => points.length).map(([name, kind, points]) =>
        [name, kind, points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a)]);
      pointer.replaceChildren();
      const at = nearest.reduce((a, b) => Math.abs(b[2][0] - x) < Math.abs(a[2][0] - x) ? b : a)[2];
      make("line", { x1: at[0], x2: at[0], y1: 12, y2: svg.viewBox.baseVal.height - 38 });
      const near = nearest.filter(([, , p]) => Math.abs(p[0] - at[0]) < 12);
      for (const [, kind, p] of near) make("circle", { cx: p[0], cy: p[1], r: 3, class: kind, fill: "currentColor" });
      tip.replaceChildren(rows([[svg.dataset.x, number(at[2])], ...near.map(([name, kind, p]) => [name, number(p[3]), kind])]));
      pointer.removeAttribute("hidden");
      place(event.clientX, event.clientY);
    };
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerdown", show);
    svg.addEventListener("pointerleave", () => { pointer.setAttribute("hidden", ""); hide(); });
  }

  const signed = (v) => {
    const text = Math.abs(v).toFixed(2);
    return (text === "0.00" ? "" : v < 0 ? "−" : "+") + text;
  };
  const percent = (v) => {
    const p = 100 * Math.exp(v);
    return p >= .1 ? p.toFixed(1) + " %" : p.toExponential(0).replace("e-", "·10⁻").replace(/⁻(\d+)/, (_, d) =>
      "⁻" + [...d].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]).join("")) + " %";
  };
  let here = null;
  const leave = () => {
    if (here) { here.classList.remove("here"); here.removeAttribute("aria-describedby"); }
    here = null;
    hide();
  };
  const look = (token) => {
    if (!token) return;
    leave();
    here = token;
    token.classList.add("here");
    token.setAttribute("aria-describedby", "tip");
    const names = JSON.parse(token.parentElement.dataset.names);
    const figures = token.dataset.f.split(",").map(Number);
    const by = document.querySelector('input[name="by"]:checked')?.value;
    const head = document.createElement("b");
    head.textContent = token.textContent.trim() || "(space)";
    const table = rows(names.map((name, i) =>
      [name, signed(figures[i]) + (name.startsWith("log") ? "  (" + percent(figures[i]) + ")" : "")]));
    names.forEach((name, i) => { if (name === by) table.rows[i].className = "now"; });
    tip.replaceChildren(head, table);
    const box = token.getClientRects()[0];
    place(box.left - 10, box.bottom);
  };
  const texts = [...document.querySelectorAll(".text")];
  for (const text of texts) {
    for (const kind of ["pointerover", "pointerdown"]) {
      text.addEventListener(kind, (event) => look(event.target.closest(".tok")));
    }
    text.addEventListener("focusin", (event) => look(event.target.closest(".tok")));
    text.addEventListener("focusout", leave);
    text.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") leave(); });
    text.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return leave();
      const tokens = [...text.querySelectorAll(".tok")], at = tokens.indexOf(document.activeElement);
      const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0,
        End: tokens.length - 1 }[event.key];
      if (at < 0 || to === undefined) return;
      event.preventDefault();
      if (!tokens[to]) return;
      tokens[at].tabIndex = -1;
      tokens[to].tabIndex = 0;
      tokens[to].focus();
    });
  }
  document.addEventListener("pointerdown", (event) => { if (!event.target.closest(".tok, svg.chart")) leave(); });
  addEventListener("scroll", () => { if (here && document.activeElement !== here) leave(); }, { passive: true });
})();
