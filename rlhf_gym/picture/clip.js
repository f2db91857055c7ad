/* Scene 3: PPO's clip, right and wrong, and what either does in time. */
(() => {
  const STEPS = 60;
  const RATE = 0.012;
  const HIGHEST = 3.2;
  const ratio = new Slider("ratio", (value) => shown(value), changed);
  const advantage = new Slider("advantage", (value) => shown(value, 1, true), changed);
  const epsilon = new Slider("epsilon", (value) => shown(value), changed);
  const step = new Slider("step", (value) => `${Math.floor(value)} of ${STEPS}`, () => {
    player.touched();
    draw();
  });
  const rules = [
    { rule: maths.clipped, plot: new Plot("clip-right", draw, 280), trace: "blue", id: "right" },
    { rule: maths.misclipped, plot: new Plot("clip-wrong", draw, 280), trace: "rose", id: "wrong" },
  ];
  const time = new Plot("clip-time", draw, 270);

  const player = new Player(
    "play-clip",
    (seconds) => {
      step.value = Math.min(STEPS, step.value + 11 * seconds);
      draw();
      return step.value < STEPS;
    },
    () => {
      step.value = 0;
    },
  );

  function changed() {
    step.value = 0;
    player.touched();
    draw();
  }

  for (const button of document.querySelectorAll("[data-clip]")) {
    button.addEventListener("click", () => {
      [ratio.value, advantage.value, epsilon.value] = JSON.parse(button.dataset.clip);
      changed();
    });
  }
  for (const { plot } of rules) {
    plot.drag(
      () => true,
      (value) => {
        ratio.value = value;
        changed();
      },
    );
  }
  time.drag(
    () => true,
    (value) => {
      step.value = value;
      player.touched();
      draw();
    },
  );

  function draw() {
    const [start, gain, range] = [ratio.value, advantage.value, epsilon.value];
    const at = Math.floor(step.value);
    const paths = rules.map(({ rule }) => maths.ascent(rule, start, gain, range, RATE, STEPS));
    rules.forEach(({ rule, plot, trace, id }, i) => {
      const now = rule(paths[i][at], gain, range);
      drawRule(plot, rule, trace, paths[i][at], gain, range, now);
      tell({
        [`${id}-ratio`]: shown(paths[i][at]),
        [`${id}-unclipped`]: shown(now.unclipped),
        [`${id}-clipped`]: shown(now.clipped),
        [`${id}-objective`]: shown(now.objective),
        [`${id}-gradient`]: shown(now.gradient, 2, true),
      });
    });
    drawTime(paths, range, at);
  }

  function drawRule(plot, rule, trace, at, gain, range, now) {
    const reach = [0, gain * HIGHEST, gain * (1 + range), 0.4, -0.4];
    const y = [Math.min(...reach) * 1.06, Math.max(...reach) * 1.06];
    plot.begin({ x: [0, HIGHEST], y, xName: "ratio π/π_old", yName: "objective", left: 46 });
    plot.band(1 - range, 1 + range, "inside");
    plot.segment(0, 0, HIGHEST, 0, "zero");
    plot.graph((x) => x * gain, "faint", 2);
    plot.graph((x) => rule(x, gain, range).clipped, "faint dotted", 320);
    plot.graph((x) => rule(x, gain, range).objective, trace, 320);
    const [px, py] = [plot.X(at), plot.Y(now.objective)];
    const push = Math.sign(now.gradient) * Math.min(74, 12 + 16 * Math.abs(now.gradient));
    plot.add("line", { x1: px, x2: px, y1: plot.frame.bottom, y2: py, class: "guide" });
    if (now.gradient) plot.arrow(px, plot.frame.bottom - 13, px + push, plot.frame.bottom - 13, trace);
    plot.dot(at, now.objective, `point ${trace}`, 7);
    const right = px > (plot.frame.left + plot.frame.right) / 2;
    const text = now.gradient ? `gradient ${shown(now.gradient, 2, true)}` : "gradient 0";
    const above = right === gain > 0; // beside the line, not on it
    const y0 = Math.min(Math.max(py + (above ? -12 : 26), plot.frame.top + 10), plot.frame.bottom - 26);
    plot.words(px + (right ? -12 : 12), y0, text, `strong ${trace} ${right ? "end" : ""}`);
  }

  function drawTime(paths, range, at) {
    const top = Math.max(1.75, ...paths.flat().map((value) => value * 1.08));
    time.begin({ x: [0, STEPS], y: [0, top], xName: "steps of gradient ascent on log π", yName: "ratio π/π_old", left: 46 });
    const { left, right } = time.frame;
    const [upper, lower] = [time.Y(1 + range), time.Y(1 - range)];
    time.add("rect", { x: left, y: upper, width: right - left, height: lower - upper, class: "inside" });
    time.words(right - 4, upper + 14, "1 ± ε", "tick end");
    [...rules.entries()].reverse().forEach(([i, { trace }]) => {
      const points = paths[i].map((value, t) => [t, value]);
      time.curve(points, `${trace} ghost`);
      time.curve(points.slice(0, at + 1), trace);
      time.dot(at, paths[i][at], `point ${trace}`, 6);
    });
    time.segment(at, 0, at, top, "guide");
  }

  draw();
})();
