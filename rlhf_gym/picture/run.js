/* Scene 4: two recorded PPO runs, with and without the KL penalty. */
(() => {
  const { prompts, runs } = numbers.recording;
  const names = ["blue", "orange"];
  const QUANTITIES = [
    { key: "score", id: "run-score", digits: 2, sign: true },
    { key: "gold", id: "run-gold", digits: 2, sign: true },
    { key: "kl", id: "run-kl", digits: 1, sign: false },
    { key: "entropy", id: "run-entropy", digits: 2, sign: false },
  ];
  const last = Math.min(...runs.map((run) => run.steps.length)) - 1;
  const end = Math.max(...runs.map((run) => run.steps[last].tokens));
  const tokens = (at) => runs[0].steps[at].tokens;
  find("moment").max = last;
  const moment = new Slider("moment", (value) => `${tokens(Math.floor(value)).toLocaleString("en-US")} tokens`, () => {
    player.touched();
    draw();
  });
  const charts = QUANTITIES.map((quantity) => ({ ...quantity, plot: new Plot(quantity.id, draw, 168) }));
  let leash = "both";
  let token = null;

  const player = new Player(
    "play-run",
    (seconds) => {
      moment.value = Math.min(last, moment.value + 6 * seconds);
      draw();
      return moment.value < last;
    },
    () => {
      moment.value = 0;
    },
  );

  for (const { plot } of charts) {
    plot.drag(
      () => true,
      (value) => {
        const distance = (at) => Math.abs(tokens(at) - value * 1000);
        let nearest = 0;
        for (let at = 1; at <= last; at += 1) if (distance(at) < distance(nearest)) nearest = at;
        moment.value = nearest;
        player.touched();
        draw();
      },
    );
  }
  for (const choice of document.querySelectorAll("input[name=leash]")) {
    choice.addEventListener("change", () => {
      leash = choice.value;
      find("samples").dataset.leash = leash;
      draw();
    });
  }

  /** The places of the page that show the responses: filled anew at each moment. */
  const places = prompts.map((prompt) => {
    const rows = runs.map((run, i) => {
      const figures = html("small", "");
      const text = html("p", "response");
      text.setAttribute("role", "group");
      text.setAttribute("aria-label", `response with β = ${run.kl_coef}, token by token`);
      return { figures, text, box: html("div", `answer ${names[i]}`, html("b", "", `β = ${run.kl_coef}`), figures, text) };
    });
    find("samples").append(html("div", "sample", html("p", "prompt", prompt), ...rows.map((row) => row.box)));
    return rows;
  });

  function draw() {
    const at = Math.floor(moment.value);
    for (const chart of charts) drawChart(chart, at);
    places.forEach((rows, number) => rows.forEach((row, i) => fill(row, runs[i].steps[at].samples[number])));
    showToken();
  }

  function drawChart({ plot, key, id, digits, sign }, at) {
    const values = runs.flatMap((run) => run.steps.map((step) => step[key]));
    const spread = Math.max(...values) - Math.min(...values);
    const low = key === "kl" || key === "entropy" ? 0 : Math.min(...values) - 0.06 * spread;
    const high = Math.max(...values) + 0.08 * spread;
    plot.begin({
      x: [0, end / 1000],
      y: [low, high],
      xName: plot.host.clientWidth < 260 ? "thousand tokens" : "thousand tokens learned from",
      yName: " ",
      xTicks: ticks(0, end / 1000, Math.max(2, plot.host.clientWidth / 90)),
      yTicks: ticks(low, high, 4),
      left: 34,
      right: 8,
      top: 10,
    });
    if (low < 0) plot.segment(0, 0, end / 1000, 0, "zero");
    plot.segment(tokens(at) / 1000, low, tokens(at) / 1000, high, "guide");
    runs.forEach((run, i) => {
      const points = run.steps.slice(0, last + 1).map((step) => [step.tokens / 1000, step[key]]);
      const dim = leash !== "both" && leash !== String(i);
      plot.curve(points, `${names[i]} ghost ${dim ? "dim" : ""}`);
      plot.curve(points.slice(0, at + 1), `${names[i]} ${dim ? "dim" : ""}`);
      if (!dim) plot.dot(points[at][0], points[at][1], `point ${names[i]}`, 5);
      tell({ [`${id}-${i}`]: shown(run.steps[at][key], digits, sign) });
    });
  }

  /** A response: each token has the colour of log π − log π_ref. */
  function fill(row, sample) {
    if (row.sample === sample) return;
    row.sample = sample;
    const ratios = sample.tokens.map((_, t) => sample.log_probs[t] - sample.ref_log_probs[t]);
    const kl = ratios.reduce((sum, value) => sum + value, 0);
    write(row.figures, `gold ${shown(sample.gold, 1, true)} · r_φ ${shown(sample.score, 1, true)} · log π/π_ref ${shown(kl, 1, true)}`);
    const focused = row.text.contains(document.activeElement);
    row.text.replaceChildren(
      ...sample.tokens.flatMap((token, t) => {
        const word = html("span", "token", token.trim() === "<eos>" ? "⏎" : token.trim());
        word.style.setProperty("--much", Math.min(Math.abs(ratios[t]) / 4, 1).toFixed(3));
        word.classList.add(ratios[t] >= 0 ? "more" : "less");
        word.tabIndex = t === 0 ? 0 : -1;
        word.dataset.told = `“${token.trim()}”: π = ${probability(sample.log_probs[t])}, π_ref = ${probability(sample.ref_log_probs[t])}, log π/π_ref = ${shown(ratios[t], 2, true)} nats`;
        return [word, " "];
      }),
    );
    if (focused) row.text.firstChild.focus();
  }

  function probability(logProb) {
    const value = Math.exp(logProb);
    return value >= 0.001 ? shown(value, 3) : value.toExponential(0).replace("e-", "·10^−");
  }

  function showToken() {
    if (token && !token.isConnected) token = null;
    tell({ "token-told": token ? token.dataset.told : "Point at a token, tap it, or go there with Tab and the arrow keys." });
  }

  const area = find("samples");
  for (const name of ["pointerover", "click", "focusin"]) {
    area.addEventListener(name, (event) => {
      const found = event.target.closest(".token");
      if (!found) return;
      token = found;
      showToken();
    });
  }
  area.addEventListener("keydown", (event) => {
    const words = [...(event.target.parentElement?.querySelectorAll(".token") ?? [])];
    const here = words.indexOf(event.target);
    const there = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: words.length - 1 }[event.key];
    if (here < 0 || there === undefined) return;
    event.preventDefault();
    if (!words[there]) return;
    words[here].tabIndex = -1;
    words[there].tabIndex = 0;
    words[there].focus();
  });

  const [held, free] = runs.map((run) => run.steps[last]);
  const best = runs[1].steps.reduce((found, step) => (step.gold > found.gold ? step : found));
  tell({
    "told-best": `${shown(best.gold, 2, true)} at ${best.tokens.toLocaleString("en-US")} tokens`,
    "told-end": shown(free.gold, 2, true),
    "told-score": shown(free.score, 2, true),
    "told-kl": `${shown(free.kl, 0)} nats`,
    "told-held": `${shown(held.gold, 2, true)} at ${shown(held.kl, 1)} nats`,
    "told-judged": numbers.recording.judged,
  });
  draw();
})();
