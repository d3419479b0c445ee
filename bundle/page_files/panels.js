// Parts of the page that show what is known: verdict, row of the worklist, details.

import {percent, verdictClass} from "./words.js";

const $ = id => document.getElementById(id);

export function make(name, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
}

export function options(select, values, chosen, words = value => value) {
  select.replaceChildren(...values.map(value => make("option", {value, textContent: words(value)})));
  if (values.includes(chosen)) select.value = chosen;
}

// What stands beside the first words of the verdict.
export function clear() {
  $("reasons").textContent = "";
  $("anyway").hidden = true;
  $("flags").replaceChildren();
  $("classes").replaceChildren();
}

export function showVerdict(item, setup) {
  const {answer} = item, {result} = answer, said = result.tumor_detected !== null;
  $("verdict").className = verdictClass(result.verdict);
  $("words").textContent = said ? answer.words : result.verdict[0].toUpperCase() + result.verdict.slice(1);
  $("reasons").textContent = said ? "" : `${result.reasons.join("; ")}.`;
  const spread = result.probability_std === null ? "" : ` ± ${(100 * result.probability_std).toFixed(1)} points over ${answer.views} views`;
  const chance = `robability ${percent(result.tumor_probability)}${spread}, threshold ${percent(result.threshold)}`;
  $("numbers").textContent = `${said ? "Tumor p" : "The network alone: tumor p"}${chance}.${setup.prevalence ? ` ${setup.prevalence}.` : ""}`;
  const flags = result.flags.filter(flag => said || !result.reasons.some(reason => reason.includes(flag.message)));
  $("flags").replaceChildren(...flags.map(flag => make("li", {textContent: `${flag.code.replaceAll("_", " ")}: ${flag.message}`})));
  $("anyway").hidden = result.verdict !== "not assessed" || Boolean(item.asked.assess_anyway);
  $("classes").replaceChildren(...Object.entries(result.class_probabilities).flatMap(([name, value]) => {
    const bar = make("dd", {}, make("i"));
    bar.firstChild.style.setProperty("--share", `${100 * value}%`);
    return [make("dt", {textContent: name.replaceAll("_", " ")}), bar, make("dd", {className: "right", textContent: percent(value)})];
  }));
}

// Of the worklist.
export function row(item, opened, show) {
  const result = item.answer?.result;
  const answer = {waiting: "waiting", working: "reading ...", refused: "cannot be read"}[item.state] ?? result.verdict;
  const name = make("button", {textContent: item.name, title: item.name, onclick: () => show(item)});
  const made = make("tr", {className: opened ? "open" : ""},
    make("td", {}, name),
    make("td", {textContent: answer, className: item.state === "refused" ? "doubt" : result ? verdictClass(result.verdict) : "quiet", title: item.error ?? item.answer?.words ?? ""}),
    make("td", {className: "right", textContent: result ? percent(result.tumor_probability) : ""}),
    make("td", {className: "right", textContent: item.milliliters?.toFixed(1) ?? ""}));
  made.setAttribute("aria-selected", opened);
  return made;
}

export function fillDetails(item, setup) {
  const {answer} = item;
  const size = answer.files.image.shape.slice(0, answer.picture ? 2 : 3).join(" × ");
  $("details").replaceChildren(...Object.entries({
    File: item.name, Size: `${size} ${answer.picture ? "pixels" : "voxels"}`,
    Answered: `${item.seconds.toFixed(1)} s after it was given`, Model: `${setup.model.name} ${setup.model.version}`,
    ...(answer.picture ? {Sides: "a picture does not say which side is which"} : answer.located ? {} : {Sides: "the file does not say which way its axes lie"}),
  }).flatMap(([name, text]) => [make("dt", {textContent: name}), make("dd", {textContent: text})]));
}

// What is said of the image with its tumor painted over.
export function showPainted(item, show) {
  const tried = Object.keys(item.painted).length > 0, {result} = item.answer;
  const found = {"as it is": {words: item.answer.words, result}, ...item.painted};
  $("paint").disabled = Boolean(item.painting) || !result.raw.tumor_voxels;
  $("painted").hidden = !tried;
  $("painted").tBodies[0].replaceChildren(...Object.entries(found).map(([name, one]) => {
    const view = make("button", {textContent: name, disabled: !one.result, onclick: () => {
      item.version = name;
      show(item);
    }});
    return make("tr", {className: item.version === name ? "open" : ""}, make("td", {}, view),
      make("td", {textContent: one.result ? one.result.verdict : "not possible"}),
      make("td", {className: "right", textContent: one.result ? percent(one.result.tumor_probability) : ""}));
  }));
  const left = Object.entries(item.painted).flatMap(([name, one]) => Object.entries(one.left).map(([why, times]) => `${name}, ${times} ${times === 1 ? "slice" : "slices"} left as they were: ${why}.`));
  const missing = result.raw.tumor_voxels ? "" : "No tumor was outlined, so there is none to paint over. ";
  $("painted-words").textContent = item.painting ?? missing + left.join(" ") + (tried ? " If the answer rests on the tumor, it changes without it and stays with the control. One image shows one case; the certificate asks many." : "");
}
