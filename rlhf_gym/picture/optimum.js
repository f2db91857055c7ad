/* Scene 2: the optimum of J on a toy of 64 responses. */
(() => {
  const { responses, rewards, ref_log_probs: refLogProbs, best_of_n: bestOfN } = numbers.toy;
  const reference = refLogProbs.map(Math.exp);
  const beta = new Slider("beta", (value) => shown(10 ** value, 10 ** value < 0.1 ? 3 : 2), () => {
    player.touched();
    draw();
  });
  const stems = new Plot("stems", draw, 400);
  const frontier = new Plot("frontier", draw, 400);
  const [low, high] = beta.range;
  const order = rewards.map((_, i) => i).sort((a, b) => rewards[a] - rewards[b]);
  const highest = order.at(-1);
  const mean = reference.reduce((sum, p, i) => sum + p * rewards[i], 0);
  const path = Array.from({ length: 161 }, (_, i) => maths.optimum(rewards, refLogProbs, 10 ** (high + 1 - ((high + 1 - low) * i) / 160)));
  const farthest = path.at(-1);
  let direction = -1;
  let picked = highest;

  const player = new Player(
    "play-optimum",
    (seconds) => {
      const next = beta.value + 0.42 * direction * seconds;
      if (next <= low || next >= high) direction = -direction;
      beta.value = Math.min(Math.max(next, low), high);
      draw();
    },
    () => {},
  );

  stems.drag(
    (px, py) => {
      const distance = (i) => Math.abs(stems.X(rewards[i]) - px);
      picked = order.reduce((best, i) => (distance(i) < distance(best) ? i : best), picked);
      draw();
      return null;
    },
    () => {},
  );
  frontier.drag(
    () => true,
    (kl) => {
      const nearest = (value) => Math.abs(maths.optimum(rewards, refLogProbs, 10 ** value).kl - kl);
      let [a, b] = [low, high];
      for (let i = 0; i < 40; i += 1) {
        const [c, d] = [a + (b - a) / 3, b - (b - a) / 3];
        if (nearest(c) < nearest(d)) b = d;
        else a = c;
      }
      beta.value = (a + b) / 2;
      player.touched();
      draw();
    },
  );
  find("pick").addEventListener("input", (event) => {
    picked = order[event.target.value];
    draw();
  });

  function draw() {
    const coefficient = 10 ** beta.value;
    const now = maths.optimum(rewards, refLogProbs, coefficient);
    drawStems(now);
    drawFrontier(now, coefficient);
    find("pick").value = order.indexOf(picked);
    const name = responses[picked].split("").join(" ");
    find("pick").setAttribute("aria-valuetext", `response ${name}, reward ${shown(rewards[picked])}`);
    tell({
      "optimum-reward": shown(now.reward, 3),
      "optimum-kl": `${shown(now.kl, 3)} nats`,
      "optimum-objective": shown(now.objective, 3),
      "optimum-sum": `${shown(now.reward, 3)} − ${shown(coefficient, coefficient < 0.1 ? 3 : 2)} · ${shown(now.kl, 3)}`,
      "picked-name": name,
      "picked-reward": shown(rewards[picked], 3),
      "picked-reference": shown(reference[picked], 4),
      "picked-optimum": shown(now.probabilities[picked], 4),
    });
  }

  /** Each response at its reward: how likely it is under π_ref and under π*. */
  function drawStems({ probabilities, reward }) {
    const top = 1.12 * Math.max(...probabilities, ...reference);
    stems.begin({ x: [0, 2], y: [0, top], xName: "reward r(y)", yName: "probability of the response y", left: 48 });
    const at = stems.X(rewards[picked]);
    stems.add("rect", { x: at - 6, y: stems.frame.top, width: 12, height: stems.frame.bottom - stems.frame.top, class: "picked" });
    for (const i of order) stems.segment(rewards[i], 0, rewards[i], reference[i], "stem grey");
    for (const i of order) stems.segment(rewards[i], 0, rewards[i], probabilities[i], "stem blue");
    for (const i of order) stems.dot(rewards[i], probabilities[i], "full blue", 4.2);
    for (const [value, className] of [[mean, "grey"], [reward, "blue"]]) stems.segment(value, 0, value, top, `level ${className}`);
    const side = rewards[picked] > 1.4 ? "end" : "middle";
    stems.words(at + (side === "end" ? 6 : 0), stems.frame.top + 13, responses[picked].split("").join(" "), `strong ${side}`);
  }

  /** The best E[r] at each KL. Its slope at π* is β, and the tangent meets the vertical axis at J*. */
  function drawFrontier(now, coefficient) {
    const x = [0, farthest.kl * 1.06];
    const y = [Math.floor(mean * 5) / 5 - 0.2, 2.1];
    frontier.begin({ x, y, xName: "KL(π‖π_ref), nats", yName: "E[r]", left: 48, right: 18 });
    frontier.curve(path.map(({ kl, reward }) => [kl, reward]), "blue");
    for (const { n, kl, reward } of bestOfN) {
      frontier.dot(kl, reward, "hollow", 4);
      frontier.label(kl, reward, `${n}`, "tick middle", 4, 17);
    }
    const end = Math.min(x[1], (y[1] - now.objective) / coefficient);
    frontier.curve([[0, now.objective], [end, now.objective + coefficient * end]], "tangent");
    frontier.segment(now.kl, y[0], now.kl, now.reward, "guide");
    frontier.dot(0, now.objective, "goal", 6);
    frontier.dot(now.kl, now.reward, "point blue", 7);
    frontier.label(0, now.objective, "J*", "strong gold end", -11, 5);
    const room = frontier.X(now.kl) > frontier.frame.left + 44;
    frontier.label(now.kl, now.reward, "π*", `strong blue ${room ? "end" : ""}`, room ? -9 : 10, room ? -9 : 24);
  }

  draw();
})();
