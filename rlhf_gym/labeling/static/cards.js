// The three kinds of items on the page. Whatever a model wrote is set as text, never as markup.
// Each kind: draw(item, into, submit) -> { keys(event) -> handled, answers: [buttons] }; submit(action, value, words).

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const SPEAKERS = { system: "System", user: "Human", assistant: "Assistant" };

const capital = (word) => word.charAt(0).toUpperCase() + word.slice(1);

// A text, or the messages of a conversation. The turns of both get their speakers' names as small headings.
export function showText(into, said) {
  into.replaceChildren();
  const turns = Array.isArray(said) ? said.map((message) => [SPEAKERS[message.role] ?? capital(message.role), message.content.trim()])
    : turnsOf(said);
  into.append(...turns.map(([speaker, words]) => element("div", { className: speaker && speaker !== SPEAKERS.assistant ? "turn other" : "turn" },
    ...(speaker ? [element("span", { className: "speaker", textContent: speaker })] : []),
    words || element("span", { className: "blank", textContent: "(nothing)" }))));
}

// The turns of a transcript, or the text as the only one.
function turnsOf(text) {
  const parts = text.split(/(?:^|\n\n)(Human|Assistant|System):/);
  if (parts.length === 1 || parts[0].trim()) return [["", text.trim()]];
  const turns = [];
  for (let i = 1; i < parts.length; i += 2) turns.push([parts[i], parts[i + 1].trim()]);
  if (turns.length > 1 && !turns.at(-1)[1]) turns.pop(); // "Assistant:", where the response goes
  return turns;
}

function responseCard(tag, text, place) {
  const card = element(tag, { className: "card" });
  const heading = element("h3", { textContent: `Response ${place + 1}`, id: `response-${place + 1}` });
  const body = element("div", { className: "text" });
  showText(body, text);
  card.append(heading, body);
  card.setAttribute("aria-labelledby", heading.id);
  return card;
}

function answer(text, key, act) {
  const hint = element("kbd", { textContent: key });
  hint.setAttribute("aria-hidden", "true");
  const button = element("button", { type: "button", onclick: act }, element("span", { textContent: text }), hint);
  button.setAttribute("aria-keyshortcuts", key);
  return button;
}

function comparison(item, into, submit) {
  into.className = "comparison fresh";
  into.replaceChildren(...item.responses.map((text, place) => responseCard("article", text, place)));
  const acts = {
    1: () => submit("chosen", [0], "Response 1 is better"),
    2: () => submit("chosen", [1], "Response 2 is better"),
    0: () => submit("tie", [], "Tie"),
  };
  return {
    question: "Which response is better?",
    answers: [answer("1 is better", "1", acts[1]), answer("Tie", "0", acts[0]), answer("2 is better", "2", acts[2])],
    keys(event) {
      if (!acts[event.key]) return false;
      acts[event.key]();
      return true;
    },
  };
}

function rating(item, into, submit) {
  into.className = "rating fresh";
  const cards = item.responses.map((text, place) => {
    const card = responseCard("article", text, place);
    const choices = [1, 2, 3, 4, 5].map((value) => {
      const input = element("input", { type: "radio", name: `rating-${place}`, value, onchange: update });
      return element("label", {}, input, String(value));
    });
    card.append(element("fieldset", {}, element("legend", { textContent: "1 is bad, 5 is excellent" }), ...choices));
    return card;
  });
  into.replaceChildren(...cards);
  const given = () => cards.map((card) => Number(card.querySelector("input:checked")?.value ?? 0));
  const done = answer("Submit", "Enter", finish);
  function update() {
    const missing = given().indexOf(0);
    cards.forEach((card, place) => card.classList.toggle("next", place === missing && cards.length > 1));
    done.disabled = missing >= 0;
  }
  function finish() {
    if (!done.disabled) submit("ratings", given(), `Rated ${given().join(", ")}`);
  }
  update();
  return {
    question: cards.length > 1 ? "How good is each response?" : "How good is the response?",
    answers: [done],
    keys(event) {
      if (event.key === "Enter") { finish(); return true; }
      if (event.key === "Backspace") {
        const last = given().findLastIndex((value) => value > 0);
        if (last >= 0) cards[last].querySelector("input:checked").checked = false;
        update();
        return true;
      }
      const place = given().indexOf(0);
      if (!/^[1-5]$/.test(event.key) || place < 0) return false;
      cards[place].querySelectorAll("input")[Number(event.key) - 1].checked = true;
      update();
      return true;
    },
  };
}

const ordinal = (n) => n + (["th", "st", "nd", "rd"][n % 10 < 4 && Math.floor(n / 10) !== 1 ? n % 10 : 0]);

function ranking(item, into, submit, announce) {
  into.className = "fresh";
  const list = element("ol", { className: "ranking" });
  const cards = item.responses.map((text, place) => {
    const card = responseCard("li", text, place);
    const handle = element("div", { className: "handle", title: "Drag to its place" });
    handle.setAttribute("aria-hidden", "true");
    const moves = element("div", { className: "moves" }, ...[["↑", -1, "up"], ["↓", 1, "down"]].map(([arrow, by, word]) => {
      const button = element("button", { type: "button", textContent: arrow, onclick: () => { move(card, by); button.focus(); } });
      button.setAttribute("aria-label", `Move response ${place + 1} ${word}`);
      return button;
    }));
    card.prepend(handle);
    card.append(moves);
    drag(card, handle, list, number);
    return card;
  });
  list.append(...cards);
  into.replaceChildren(list);
  let picked = 0;
  const order = () => [...list.children].map((card) => cards.indexOf(card));
  const done = answer("Submit ranking", "Enter", finish);
  function number() {
    [...list.children].forEach((card, rank) => {
      card.querySelector(".handle").textContent = ordinal(rank + 1);
      card.classList.toggle("placed", rank < picked);
      const [up, down] = card.querySelectorAll(".moves button");
      up.disabled = rank === 0;
      down.disabled = rank === cards.length - 1;
    });
  }
  function move(card, by) {
    const sibling = by < 0 ? card.previousElementSibling : card.nextElementSibling;
    if (!sibling) return;
    if (by < 0) sibling.before(card); else sibling.after(card);
    number();
    announce(`Response ${cards.indexOf(card) + 1} is now number ${order().indexOf(cards.indexOf(card)) + 1}`);
  }
  function finish() {
    const ranks = Array(cards.length);
    order().forEach((place, rank) => { ranks[place] = rank + 1; });
    submit("ranking", ranks, `Ranked ${order().map((place) => place + 1).join(" > ")}`);
  }
  number();
  return {
    question: "Put the responses in order, the best on top: drag, or press their numbers from best to worst",
    answers: [done],
    keys(event) {
      if (event.key === "Enter") { finish(); return true; }
      if (event.key === "Backspace") { picked = Math.max(0, picked - 1); number(); return true; }
      const card = /^[1-9]$/.test(event.key) ? cards[Number(event.key) - 1] : null;
      if (!card) return false;
      const rank = order().indexOf(cards.indexOf(card));
      if (rank < picked) return true; // it has its place
      if (rank !== picked) list.children[picked].before(card);
      picked++;
      number();
      announce(`Response ${event.key} is number ${picked}`);
      return true;
    },
  };
}

// Dragging by the handle, with mouse, pen or finger: the card follows, and changes places with those it passes.
function drag(card, handle, list, moved) {
  let start = null;
  const end = () => {
    if (start === null) return;
    start = null;
    card.classList.remove("moving");
    card.style.transform = "";
    moved();
  };
  handle.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    handle.setPointerCapture(event.pointerId);
    start = event.clientY;
    card.classList.add("moving");
    list.parentElement.classList.remove("fresh"); // an animation would take the transform for itself
  });
  handle.addEventListener("pointermove", (event) => {
    if (start === null) return;
    const centre = (other) => other.getBoundingClientRect().top + other.offsetHeight / 2;
    const follow = () => { card.style.transform = `translateY(${event.clientY - start}px)`; };
    follow();
    for (let passed = true; passed;) { // a quick movement may pass several
      const above = card.previousElementSibling, below = card.nextElementSibling, before = card.offsetTop;
      const up = above && centre(card) < centre(above), down = below && centre(card) > centre(below);
      if (up) list.insertBefore(above, card.nextSibling); // the others move: the card must keep the pointer
      else if (down) list.insertBefore(below, card);
      start += card.offsetTop - before; // its place in the list changes, that under the finger does not
      follow();
      passed = Boolean(up || down);
    }
  });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) handle.addEventListener(name, end);
}

export const KINDS = { comparison, ranking, rating };
