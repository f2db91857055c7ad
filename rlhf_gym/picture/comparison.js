/* Scene 1: one comparison in the reward model's loss. */
(() => {
  const { recording } = numbers;
  const [held, free] = recording.runs.map((run) => run.steps.at(-1).samples[0]);
  const text = (sample) => sample.tokens.join("").replace("<eos>", "").trim();
  const plus = new Slider("plus", (value) => shown(value), moved);
  const minus = new Slider("minus", (value) => shown(value), moved);
  const line = new Plot("score-line", draw, 178);
  const losses = new Plot("loss-curve", draw, 228);
  const chances = new Plot("chance-curve", draw, 228);
  const [low, high] = plus.range;
  const clip = (value) => Math.min(Math.max(value, low), high);
  let start = [held.score, free.score];

  const player = new Player(
    "play-comparison",
    (seconds) => {
      const { chosenGradient, rejectedGradient } = maths.comparison(plus.value, minus.value);
      put(plus.value - 1.4 * seconds * chosenGradient, minus.value - 1.4 * seconds * rejectedGradient);
      return plus.value < high && minus.value > low;
    },
    () => put(...start),
  );

  function moved() {
    start = [plus.value, minus.value];
    player.touched();
    draw();
  }

  function put(chosen, rejected) {
    plus.value = clip(chosen);
    minus.value = clip(rejected);
    draw();
  }

  for (const button of document.querySelectorAll("[data-pair]")) {
    button.addEventListener("click", () => {
      const pair = button.dataset.pair === "recorded" ? [held.score, free.score] : JSON.parse(button.dataset.pair);
      player.touched();
      put(...pair);
      start = pair;
    });
  }

  line.drag(
    (px, py, value) => {
      const [toPlus, toMinus] = [plus.value, minus.value].map((score) => Math.abs(px - line.X(score)));
      const between = value > Math.min(plus.value, minus.value) && value < Math.max(plus.value, minus.value);
      if (between && Math.min(toPlus, toMinus) > 20) return { both: true, at: value };
      return { plus: Math.abs(toPlus - toMinus) < 8 ? py < 89 : toPlus < toMinus };
    },
    (value, _, grip) => {
      if (grip.both) {
        const shift = Math.min(Math.max(value - grip.at, low - Math.min(plus.value, minus.value)), high - Math.max(plus.value, minus.value));
        grip.at += shift;
        put(plus.value + shift, minus.value + shift);
      } else if (grip.plus) put(value, minus.value);
      else put(plus.value, value);
      moved();
    },
  );

  function draw() {
    const chosen = plus.value;
    const rejected = minus.value;
    const now = maths.comparison(chosen, rejected);
    drawLine(chosen, rejected, now);
    drawCurve(losses, now, "loss L, nats", now.loss, [0, 6.2], (delta) => maths.softplus(-delta));
    losses.curve([-1.2, 1.2].map((d) => [now.delta + d, now.loss + d * now.chosenGradient]), "tangent");
    losses.dot(now.delta, now.loss, "point blue", 6.5);
    drawCurve(chances, now, "P(y⁺ ≻ y⁻)", now.probability, [0, 1.04], maths.sigmoid);
    chances.dot(now.delta, now.probability, "point blue", 6.5);
    tell({
      "delta-now": `${shown(chosen)} − ${rejected < 0 ? `(${shown(rejected)})` : shown(rejected)} = ${shown(now.delta)}`,
      "chance-now": shown(now.probability, 4),
      "loss-now": shown(now.loss, 4),
      "plus-gradient": shown(now.chosenGradient, 4, true),
      "minus-gradient": shown(now.rejectedGradient, 4, true),
    });
  }

  /** Both scores on one axis, with an arrow for the step that gradient descent takes. */
  function drawLine(chosen, rejected, now) {
    line.begin({ x: [low - 0.25, high + 0.25], y: [-1, 1], xName: "score r_φ of the response", left: 10, right: 10, top: 8, bottom: 40 });
    const middle = line.Y(0);
    const left = Math.min(line.X(chosen), line.X(rejected));
    line.add("line", { x1: line.frame.left, x2: line.frame.right, y1: middle, y2: middle, class: "rail" });
    line.add("rect", { x: left, y: middle - 7, width: Math.abs(line.X(chosen) - line.X(rejected)), height: 14, rx: 7, class: `bar ${now.delta < 0 ? "wrong" : ""}` });
    const width = 92;
    line.arrow(line.X(chosen), middle - 27, line.X(chosen) - width * now.chosenGradient, middle - 27, "blue");
    line.arrow(line.X(rejected), middle + 27, line.X(rejected) - width * now.rejectedGradient, middle + 27, "orange");
    for (const [score, name, above] of [[chosen, "blue", true], [rejected, "orange", false]]) {
      line.add("circle", { cx: line.X(score), cy: middle, r: 13, class: `grip ${name}` });
      line.words(line.X(score), middle + 5, above ? "+" : "−", "sign middle");
      const place = Math.min(Math.max(line.X(score), 30), line.width - 30);
      line.words(place, middle + (above ? -40 : 50), `${above ? "r⁺" : "r⁻"} = ${shown(score)}`, `strong middle ${name}`);
    }
  }

  function drawCurve(plot, now, yName, value, y, f) {
    plot.begin({ x: [-6, 6], y, xName: "Δ = r⁺ − r⁻", yName, left: 40 });
    plot.segment(0, y[0], 0, y[1], "grid");
    plot.segment(now.delta, y[0], now.delta, value, "guide");
    plot.graph(f, "blue");
  }

  tell({ "pair-prompt": recording.prompts[0], "pair-chosen": text(held), "pair-rejected": text(free) });
  put(...start);
})();
