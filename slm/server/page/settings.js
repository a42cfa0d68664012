// The settings: fields of the form, a request's body, and the fragment of a link.

const DEFAULTS = {
  prompt: "Once upon a time",
  model: "",
  other: "",
  temperature: "0.8",
  top_k: "50",
  top_p: "1",
  min_p: "0",
  max_tokens: "200",
  seed: "1",
  stop: "",
};
const NUMBERS = ["temperature", "top_k", "top_p", "min_p", "max_tokens", "seed"];
const LOGPROBS = 5; // alternatives of each token

/** The settings in the form, all as text. */
export function read(form) {
  return Object.fromEntries(Object.keys(DEFAULTS).map((name) => [name, form.elements[name].value]));
}

/** Fill the form from a link's fragment; what the link does not name gets its default. */
export function fill(form, fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  for (const [name, value] of Object.entries(DEFAULTS)) {
    if (name === "model" || name === "other") continue; // known once the server has answered
    form.elements[name].value = given.get(name) ?? value;
  }
  return { model: given.get("model") ?? "", other: given.get("other") ?? "" };
}

/** The fragment of a link to these settings. */
export function fragment(settings) {
  const kept = Object.entries(settings).filter(([name, value]) => value || name === "prompt");
  return `#${new URLSearchParams(kept)}`;
}

/** The body of a request. Throws a RangeError, whose message names the setting, for no number. */
export function body(settings, model) {
  const numbers = Object.fromEntries(NUMBERS.map((name) => [name, number(name, settings[name])]));
  const { top_k: topK, min_p: minP, ...rest } = numbers;
  const stop = settings.stop.split("\n").filter(Boolean).map(unescaped);
  return {
    model,
    prompt: settings.prompt,
    ...rest,
    ...(topK ? { top_k: topK } : {}),
    ...(minP ? { min_p: minP } : {}),
    ...(stop.length ? { stop } : {}),
    logprobs: LOGPROBS,
    stream: true,
    stream_options: { include_usage: true },
  };
}

function number(name, text) {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new RangeError(`${name}: give a number.`);
  if (Number.isInteger(value) && !Number.isSafeInteger(value)) {
    throw new RangeError(`${name}: give a number below 2^53, which a browser keeps exactly.`);
  }
  return value;
}

/** `\n`, `\t` and `\\` of a stop text as what they stand for. */
function unescaped(text) {
  const meant = { n: "\n", t: "\t", "\\": "\\" };
  return text.replace(/\\([nt\\])/g, (_, letter) => meant[letter]);
}
