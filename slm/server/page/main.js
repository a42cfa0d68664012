// The page at /: a form, one or two streams, their texts.

import { ApiError, complete, key, models } from "./api.js";
import * as settings from "./settings.js";
import { Details, Tokens } from "./tokens.js";

const MIN_SPOKEN = 80; // characters that a screen reader is given at a time
const ENDS = {
  stop: "ended by itself",
  length: "reached max tokens",
};

const $ = (id) => document.getElementById(id);
const form = $("settings");
const details = new Details($("details"));
let running = null; // the AbortController of the texts that are being written
let served = []; // ids of the models
let asked = { model: "", other: "" }; // what the link names

// ---- models -----------------------------------------------------------------------------------

async function loadModels() {
  served = (await models()).map((model) => model.id);
  choices($("model"), served.map((id) => [id, id]), asked.model);
  choices($("other"), [["", "nothing"], ...served.map((id) => [id, id])], asked.other);
  $("other").parentElement.hidden = served.length < 2;
  $("served").textContent = ["slm serve", ...served].join(" · ");
  document.title = `${served[0] ?? "no model"} · slm serve`;
  const missing = [asked.model, asked.other].filter((id) => id && !served.includes(id));
  report(missing.length ? `This server does not have ${missing.join(" and ")}, which the link names.` : "");
  askForKey(false);
}

function choices(select, options, chosen) {
  const value = chosen || select.value;
  select.replaceChildren(...options.map(([id, text]) => new Option(text, id)));
  select.value = options.some(([id]) => id === value) ? value : options[0]?.[0] ?? "";
}

function askForKey(needed) {
  $("key-row").hidden = !needed;
  if (needed) $("key").focus();
}

function useKey() {
  key.set($("key").value.trim());
  attempt(loadModels);
}

/** Run what asks the server; what goes wrong is shown. */
async function attempt(action) {
  try {
    await action();
  } catch (error) {
    if (!(error instanceof ApiError || error instanceof RangeError)) throw error;
    report(error.message);
    if (error.status === 401) askForKey(true);
  }
}

function report(message, place = $("problem")) {
  place.textContent = message;
  place.hidden = !message;
}

// ---- texts ------------------------------------------------------------------------------------

async function write() {
  running?.abort();
  const control = new AbortController();
  running = control;
  report("");
  details.hide();
  if (!served.length) await loadModels();
  const given = settings.read(form);
  const chosen = [given.model, ...(given.other && !$("other").parentElement.hidden ? [given.other] : [])];
  const bodies = chosen.map((model) => settings.body(given, model));
  $("results").replaceChildren();
  $("results").classList.toggle("two", bodies.length > 1);
  $("results").hidden = false;
  $("halt").disabled = false;
  remember();
  await Promise.all(bodies.map((body) => stream(body, control.signal)));
  if (running !== control) return; // another one was begun meanwhile
  running = null;
  if (document.activeElement === $("halt")) $("write").focus();
  $("halt").disabled = true;
}

/** One text, from its request to its end. */
async function stream(body, signal) {
  const card = $("result").content.cloneNode(true).firstElementChild;
  const part = (selector) => card.querySelector(selector);
  const tokens = new Tokens(part(".tokens"), details, `Tokens of ${body.model}`);
  const text = { body, tokens, part, started: performance.now(), first: 0, last: 0, count: 0, end: "", spoken: 0 };
  part(".name").textContent = body.model;
  part(".prompt").textContent = body.prompt;
  part(".copy").addEventListener("click", (event) => copy(body.prompt + tokens.text, event.target));
  card.classList.add("writing");
  $("results").append(card);
  showState(text);
  try {
    await complete(body, signal, (chunk) => receive(text, chunk));
  } catch (error) {
    if (error.name === "AbortError") text.end = "stopped by you";
    else if (error instanceof ApiError) {
      text.end = "not finished";
      report(error.message, part(".notice"));
      if (error.status === 401) askForKey(true);
    } else throw error;
  } finally {
    card.classList.remove("writing");
    tokens.finish();
    showState(text);
    speak(text, true);
  }
}

function receive(text, chunk) {
  const [choice] = chunk.choices;
  if (chunk.usage) text.count = chunk.usage.completion_tokens;
  if (!choice) return showState(text);
  text.part(".name").textContent = named(chunk);
  text.tokens.add(choice.text, choice.logprobs);
  if (text.tokens.tokens.length) $("legend").hidden = false;
  const now = performance.now();
  if (choice.text || choice.logprobs?.tokens?.length) {
    text.first ||= now;
    text.last = now;
  }
  text.count = Math.max(text.count, text.tokens.tokens.length);
  if (choice.finish_reason) text.end = ending(choice.finish_reason, text.body.stop);
  showState(text);
  speak(text, false);
  return undefined;
}

/** `slm@champion · models:/slm/3`: what was asked for, and the version that it is now. */
function named({ model, system_fingerprint: version }) {
  return version && version !== model ? `${model} · ${version}` : model;
}

function ending(reason, stop) {
  return reason === "stop" && stop ? "ended by itself or at a stop text" : ENDS[reason] ?? reason;
}

/** The line below a text: 120 tokens · 310 tokens/s · first after 0.04 s · reached max tokens. */
function showState(text) {
  const parts = [];
  if (text.first) {
    parts.push(`${text.count} ${text.count === 1 ? "token" : "tokens"}`);
    const seconds = (text.last - text.first) / 1000;
    if (seconds > 0 && text.count > 1) {
      const rate = (text.count - 1) / seconds;
      parts.push(`${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`);
    }
    parts.push(`first after ${((text.first - text.started) / 1000).toFixed(2)} s`);
  }
  parts.push(text.end || (text.first ? "writing…" : "waiting…"));
  text.part(".state").textContent = parts.join(" · ");
}

/** Give a screen reader what is new, some words at a time. */
function speak(text, final) {
  if (text.part(".name").closest("article").previousElementSibling) return; // of two, the first
  const all = text.tokens.text;
  const fresh = all.slice(text.spoken);
  const until = final ? fresh.length : fresh.lastIndexOf(" ");
  if (!final && until < MIN_SPOKEN) return;
  text.spoken += until;
  $("spoken").textContent = fresh.slice(0, until) + (final ? ` (${text.part(".state").textContent})` : "");
}

// ---- the link, the clipboard ------------------------------------------------------------------

/** Keep the settings in the address. */
function remember() {
  const given = settings.read(form);
  asked = { model: given.model, other: given.other };
  history.replaceState(null, "", settings.fragment(given));
}

async function copy(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    $("spoken").textContent = "Copied";
  } catch {
    button.textContent = "The browser does not allow it";
  }
  setTimeout(() => (button.textContent = label), 2000);
}

function open() {
  asked = settings.fill(form, location.hash);
  attempt(loadModels);
}

// ---- events -----------------------------------------------------------------------------------

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (document.activeElement === $("key")) useKey();
  else attempt(write);
});
$("use-key").addEventListener("click", useKey);
form.addEventListener("change", () => served.length && remember());
$("halt").addEventListener("click", () => running?.abort());
$("another").addEventListener("click", () => {
  $("seed").value = Math.floor(Math.random() * 1e6);
  remember();
});
$("share").addEventListener("click", (event) => {
  remember();
  copy(location.href, event.target);
});
$("marks").addEventListener("change", () => {
  $("results").classList.toggle("unmarked", !$("marks").checked);
  $("legend").classList.toggle("unmarked", !$("marks").checked);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    attempt(write);
  } else if (event.key === "Escape") {
    if (details.open) details.hide();
    else running?.abort();
  }
});
window.addEventListener("hashchange", open);
open();
