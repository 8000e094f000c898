// Fill the page from the JSON in #data. Texts of runs become text nodes only, so that none of them is read as markup.
const isDark = matchMedia("(prefers-color-scheme: dark)");

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function shown(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4)));
  return typeof value === "string" ? value : JSON.stringify(value);
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

function table(head, rows, caption) {
  const isNumber = head.map((_, i) => rows.length > 0 && rows.every((row) => row[i] === null || typeof row[i] === "number"));
  const cell = (tag, value, i, more = {}) => element(tag, { class: isNumber[i] ? "number" : null, ...more }, shown(value));
  return element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": caption },
    element("table", {},
      element("caption", { hidden: true }, caption),
      element("thead", {}, element("tr", {}, ...head.map((name, i) => cell("th", name, i, { scope: "col" })))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((value, i) => cell("td", value, i)))))));
}

function section(id, title, ...children) {
  return element("section", { id, "aria-labelledby": `${id}-title` }, element("h2", { id: `${id}-title` }, title), ...children);
}

// Overview -------------------------------------------------------------------------------------------------------

function overview(data) {
  const parts = data.runs.map((run) => element("div", {},
    data.runs.length > 1 ? element("h3", {}, run.name) : null,
    element("dl", { class: "facts" },
      ...run.headline.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)))),
    run.warnings.length ? element("div", { class: "notes" }, element("h3", {}, "Warnings"), ...run.warnings.map((line) => element("p", {}, line))) : null,
    run.missing.length ? element("div", { class: "notes missing" }, element("h3", {}, "What is not here"), ...run.missing.map((line) => element("p", {}, line))) : null));
  return section("overview", "Overview", ...parts);
}

// Charts ---------------------------------------------------------------------------------------------------------

function chartRows(data, chart) {
  const rows = [];
  for (const run of data.runs)
    for (const [metric, label] of Object.entries(chart.series))
      run.columns[metric].forEach((value, i) => {
        // A null breaks the line; a metric without a value at a step, such as one of evaluations, leaves it whole.
        if (value !== null) rows.push({ step: run.steps[i], value: chart.is_log && value <= 0 ? null : value, series: label, run: run.name });
      });
  return rows;
}

function spec(data, chart, rows) {
  const several = data.runs.length > 1;
  const labels = Object.values(chart.series);
  const few = new Set(rows.map((row) => row.step)).size <= 12;
  const isArea = chart.is_area && !several;
  const color = several
    ? { field: "run", type: "nominal", title: null, sort: null, scale: { domain: data.runs.map((run) => run.name) } }
    : { field: "series", type: "nominal", title: null, sort: null, scale: { domain: labels } };
  const encoding = {
    x: { field: "step", type: "quantitative", title: "updates", axis: { tickMinStep: 1, grid: false } },
    y: { field: "value", type: "quantitative", title: chart.unit, stack: isArea ? "zero" : null,
         scale: chart.is_log ? { type: "log" } : chart.is_share ? { domain: [0, 1], clamp: true } : { zero: isArea, nice: true },
         axis: { tickCount: 4, format: "~g" } },
    color,
    tooltip: [{ field: "step", title: "update" }, { field: "series" }, ...(several ? [{ field: "run" }] : []), { field: "value", format: ".4~g" }],
  };
  if (isArea) encoding.order = { field: "order" };
  if (several && labels.length > 1) encoding.strokeDash = { field: "series", type: "nominal", title: null, sort: null };
  return {
    width: "container", height: 170, autosize: { type: "fit", contains: "padding" },
    description: summary(data, chart),
    data: { values: isArea ? rows.map((row) => ({ ...row, order: labels.indexOf(row.series) })) : rows },
    mark: isArea ? { type: "area", opacity: 0.85 } : { type: "line", point: few, interpolate: "linear", strokeWidth: 1.6, invalid: "break-paths-show-domains" },
    encoding,
    config: {
      background: "transparent", view: { stroke: null }, legend: { orient: "bottom", columns: 2, labelLimit: 200 },
      range: { category: { scheme: "tableau10" } },
      ...(isDark.matches ? { axis: { labelColor: "#c9ced4", titleColor: "#c9ced4", domainColor: "#777", tickColor: "#777", gridColor: "#333" },
                             legend: { orient: "bottom", columns: 2, labelLimit: 200, labelColor: "#e6e8ea" } } : {}),
    },
  };
}

function chartTable(data, chart) {
  const metrics = Object.keys(chart.series);
  const head = ["updates", ...data.runs.flatMap((run) => metrics.map((m) => (data.runs.length > 1 ? `${run.name}: ` : "") + chart.series[m]))];
  const steps = [...new Set(data.runs.flatMap((run) => run.steps))].sort((a, b) => a - b);
  const rowOfStep = data.runs.map((run) => new Map(run.steps.map((step, i) => [step, i])));
  const value = (run, rowOf, step, m) => (rowOf.has(step) ? run.columns[m][rowOf.get(step)] : null);
  const rows = steps.map((step) => [step, ...data.runs.flatMap((run, r) => metrics.map((m) => value(run, rowOfStep[r], step, m)))]);
  return table(head, rows.filter((row) => row.slice(1).some((each) => each !== null)), `${chart.title}: values`);
}

function summary(data, chart) {
  const ends = data.runs.flatMap((run) => Object.entries(chart.series).map(([metric, label]) => {
    const values = run.columns[metric].filter((value) => value !== null);
    if (!values.length) return null;
    return `${data.runs.length > 1 ? `${run.name}, ` : ""}${label}: from ${shown(values[0])} to ${shown(values.at(-1))}`;
  }).filter((text) => text !== null));
  return `${chart.title}, ${chart.unit}. ${ends.join("; ")}.`;
}

function chartFigure(data, chart) {
  const plot = element("div", { class: "plot" });
  const values = element("details", {}, element("summary", {}, "Values as a table"));
  values.addEventListener("toggle", () => { if (values.open && values.children.length === 1) values.append(chartTable(data, chart)); });
  const figure = element("figure", {}, element("h3", {}, chart.title), plot, element("figcaption", {}, chart.advice), values);
  figure.draw = () => vegaEmbed(plot, { $schema: "https://vega.github.io/schema/vega-lite/v6.json", ...spec(data, chart, chartRows(data, chart)) }, { actions: false, renderer: "svg" });
  return figure;
}

function charts(data) {
  if (!data.charts.length) return section("curves", "Curves", element("p", {}, "There are no steps to draw yet."));
  const figures = data.charts.map((chart) => chartFigure(data, chart));
  const drawAll = () => figures.forEach((figure) => figure.draw());
  requestAnimationFrame(drawAll);
  isDark.addEventListener("change", drawAll);
  return section("curves", "Curves", element("div", { class: "charts" }, ...figures));
}

// Evaluations, options, environment ------------------------------------------------------------------------------

function evaluations(data) {
  const rows = data.runs.flatMap((run) => run.evaluations.map((each) => [
    ...(data.runs.length > 1 ? [run.name] : []), each.folder, each.problems, each.num_problems, each.num_samples,
    percent(each.accuracy), `${percent(each.interval_95[0])} to ${percent(each.interval_95[1])}`, percent(each.truncated), each.mean_tokens]));
  if (!rows.length) return null;
  const head = [...(data.runs.length > 1 ? ["run"] : []), "evaluation", "problems", "number", "samples", "accuracy", "95 % interval", "cut", "tokens"];
  return section("evaluations", "Evaluations", table(head, rows, "Evaluations"));
}

function options(data) {
  const several = data.runs.length > 1;
  const head = ["option", ...data.runs.map((run) => run.name)];
  const names = [...new Set(data.runs.flatMap((run) => Object.keys(run.changed)))];
  const changed = table(several ? head : ["option", "value"], names.map((name) => [name, ...data.runs.map((run) => run.options[name])]), "Options that differ from their defaults");
  const all = [...new Set(data.runs.flatMap((run) => Object.keys(run.options)))];
  return section("options", "Options",
    several ? element("h3", {}, "What differs between the runs") : null,
    several ? table(head, Object.entries(data.differing).map(([name, values]) => [name, ...values]), "Options that differ between the runs") : null,
    element("h3", {}, "What differs from the defaults"), changed,
    element("details", {}, element("summary", {}, `All ${all.length} options`),
      table(several ? head : ["option", "value"], all.map((name) => [name, ...data.runs.map((run) => run.options[name])]), "All options")));
}

function environment(data) {
  const parts = data.runs.flatMap((run) => run.starts.map((start) => element("details", { open: run.starts.length === 1 },
    element("summary", {}, `${data.runs.length > 1 ? `${run.name}: ` : ""}${start.after_step ? `resumed after step ${start.after_step}` : "started"}`),
    table(["what", "value"], Object.entries(start).filter(([name]) => name !== "versions").concat(Object.entries(start.versions ?? {})), "Environment"))));
  return parts.length ? section("environment", "Environment", ...parts) : null;
}

// Rollouts -------------------------------------------------------------------------------------------------------

function isGuided(rollout) {
  return rollout.prefix !== "" || rollout.ratio > 0;
}

function shaded(rollout, by) {
  // Return spans of the completion; probability: the darker, the less likely; advantage: one colour for all tokens.
  const own = element("span", { class: "own" });
  if (by === "advantage" && rollout.advantage) {
    const strength = Math.min(1, Math.abs(rollout.advantage)) * 0.5;
    own.style.background = rollout.advantage > 0 ? `rgba(21,140,70,${strength})` : `rgba(200,40,30,${strength})`;
  }
  if (by !== "probability" || !rollout.pieces) {
    own.append(rollout.completion);
    return own;
  }
  let start = 0;
  rollout.pieces.forEach((length, i) => {
    const probability = Math.exp(rollout.logprobs[i]);
    const token = element("span", { title: `probability ${probability.toPrecision(2)}` }, rollout.completion.slice(start, start + length));
    token.style.background = `rgba(190,90,0,${0.75 * (1 - probability)})`;
    own.append(token);
    start += length;
  });
  own.append(rollout.completion.slice(start));
  return own;
}

function detail(group, rollout, shade) {
  const facts = [["verdict", rollout.verdict], ["read as the answer", rollout.answer], ["gold answer", rollout.gold], ["reward", rollout.reward],
    ["advantage", rollout.advantage], ["micro-group", rollout.micro_group], ["prefix ratio", rollout.ratio], ["trace", rollout.trace],
    ["ended by", rollout.finish_reason], ["step", group.step], ["trained", rollout.is_replaced ? "no: another problem replaced it" : null]];
  return element("div", {},
    element("h3", {}, `${rollout.problem_id}${rollout.slot === undefined ? "" : `, rollout ${rollout.slot + 1}`}`),
    element("dl", { class: "facts" }, ...facts.filter(([, value]) => value !== null && value !== undefined).map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", { class: name === "verdict" ? (value === "correct" ? "correct" : "wrong") : null }, shown(value))))),
    element("h3", {}, "Prompt"), element("pre", {}, rollout.prompt),
    element("h3", {}, isGuided(rollout) ? "Expert prefix, then own tokens" : "Own tokens"),
    element("pre", {}, rollout.prefix ? element("span", { class: "prefix" }, rollout.prefix) : null, shaded(rollout, shade)),
    rollout.finish_reason === "length" ? element("p", { class: "wrong" }, "It was cut here, at the length limit.") : null,
    rollout.is_cut ? element("p", {}, "The text is longer than this page shows.") : null);
}

function rollouts(data) {
  const groups = data.runs.flatMap((run) => run.groups.map((group) => ({ ...group, run: run.name })));
  if (!groups.length) return null;
  const all = groups.flatMap((group) => group.rollouts.map((rollout) => ({ group, rollout: { verdict: "not known", ...rollout } })));
  const unique = (values) => [...new Set(values)].sort((a, b) => (a > b ? 1 : -1));
  const select = (label, values) => {
    const made = element("select", { onchange: () => show(0) }, element("option", { value: "" }, "all"), ...values.map((value) => element("option", { value: String(value) }, String(value))));
    return [made, element("label", {}, label, made)];
  };
  const [run, runLabel] = select("run", unique(groups.map((group) => group.run)));
  const [step, stepLabel] = select("step", unique(groups.map((group) => group.step)));
  const [verdict, verdictLabel] = select("verdict", unique(all.map((each) => each.rollout.verdict)));
  const [guided, guidedLabel] = select("help", ["with a prefix", "without"]);
  const [micro, microLabel] = select("micro-group", unique(all.map((each) => each.rollout.micro_group).filter((value) => value !== undefined)));
  const [reward, rewardLabel] = select("reward", ["above 0", "0", "below 0", "none"]);
  const text = element("input", { type: "search", oninput: () => show(0) });
  const shade = element("select", { onchange: () => open(current) }, element("option", { value: "" }, "nothing"),
    element("option", { value: "probability", disabled: !all.some((each) => each.rollout.pieces) }, "probability of tokens"), element("option", { value: "advantage" }, "advantage"));
  const list = element("div", { class: "list", role: "group", "aria-label": "Rollouts" });
  const pane = element("div");
  const count = element("p", { role: "status" });
  let matching = [], current = 0, from = 0;
  const size = 200;
  const rewardIs = { "above 0": (r) => r !== null && r > 0, "0": (r) => r === 0, "below 0": (r) => r !== null && r < 0, none: (r) => r === null };

  function matches({ group, rollout }) {
    return (!run.value || group.run === run.value) && (!step.value || String(group.step) === step.value)
      && (!verdict.value || rollout.verdict === verdict.value) && (!guided.value || isGuided(rollout) === (guided.value === "with a prefix"))
      && (!micro.value || String(rollout.micro_group) === micro.value) && (!reward.value || rewardIs[reward.value](rollout.reward ?? null))
      && (!text.value || [rollout.problem_id, rollout.prompt, rollout.completion].some((part) => part.toLowerCase().includes(text.value.toLowerCase())));
  }
  function open(index) {
    current = index;
    [...list.querySelectorAll("button[data-index]")].forEach((button) => button.setAttribute("aria-current", String(Number(button.dataset.index) === index)));
    pane.replaceChildren(...(matching[index] ? [detail(matching[index].group, matching[index].rollout, shade.value)] : []));
  }
  function item({ group, rollout }, index) {
    const mark = rollout.verdict === "correct" ? "✓" : "✗";
    return element("button", { "data-index": index, onclick: () => open(index) },
      element("span", { class: rollout.verdict === "correct" ? "correct" : "wrong" }, `${mark} ${rollout.verdict}`),
      ` step ${group.step}, ${rollout.problem_id}, ${isGuided(rollout) ? `prefix ${shown(rollout.ratio)}` : "no prefix"}, reward ${shown(rollout.reward)}`);
  }
  function show(start) {
    from = start;
    matching = all.filter(matches);
    const part = matching.slice(from, from + size);
    count.replaceChildren(`${matching.length} of ${all.length} rollouts on this page` + (matching.length > size ? `, ${from + 1} to ${from + part.length} in the list` : ""));
    list.replaceChildren(
      ...(from > 0 ? [element("button", { onclick: () => show(Math.max(0, from - size)) }, "← earlier ones")] : []),
      ...part.map((each, i) => item(each, from + i)),
      ...(from + size < matching.length ? [element("button", { onclick: () => { show(from + size); list.querySelector("button")?.focus(); } }, "later ones →")] : []));
    list.scrollTop = 0;
    open(from);
  }
  list.addEventListener("keydown", (event) => {
    const moves = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" };
    const next = moves[event.key] && document.activeElement?.[moves[event.key]];
    if (next) { event.preventDefault(); next.focus(); if (next.dataset.index) open(Number(next.dataset.index)); }
  });
  show(0);
  return section("rollouts", "Rollouts",
    element("div", { class: "filters" }, data.runs.length > 1 ? runLabel : null, stepLabel, verdictLabel, guidedLabel, microLabel, rewardLabel,
      element("label", {}, "text or problem", text), element("label", {}, "shade by", shade)),
    count, element("div", { class: "browser" }, list, pane));
}

// The page -------------------------------------------------------------------------------------------------------

function fill(data) {
  const parts = [overview(data), charts(data), evaluations(data), rollouts(data), options(data), environment(data)].filter((part) => part !== null);
  document.getElementById("main").replaceChildren(...parts);
  document.getElementById("nav").replaceChildren(...parts.map((part) => element("a", { href: `#${part.id}` }, part.querySelector("h2").textContent)));
}

fill(JSON.parse(document.getElementById("data").textContent));
