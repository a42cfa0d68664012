// A text as its tokens, each with its probability and its alternatives.

const EDGES = [0.6, 0.2, 0.05, 0.005]; // probabilities between the shades, as the legend names them
const END = "<|endoftext|>";
const HIDE_AFTER = 200; // ms, in which the pointer may move on to the alternatives
const GAP = 8; // pixels between a token and its alternatives

/** The tokens of one text, in a listbox that the arrow keys go through. */
export class Tokens {
  constructor(list, details, label) {
    this.list = list;
    this.label = label;
    this.details = details;
    this.characters = []; // code points of the text so far: offsets count these
    this.tokens = []; // {element, offset, logprob, alternatives}
    this.plain = null; // the text where the server gives no logprobs
    list.addEventListener("pointerover", (event) => this.#at(event, () => details.cancel()));
    list.addEventListener("pointerout", () => details.leave());
    list.addEventListener("focusin", (event) => this.#at(event));
    list.addEventListener("focusout", () => details.hide());
    list.addEventListener("click", (event) => event.target.closest("[role=option]")?.focus());
    list.addEventListener("keydown", (event) => this.#move(event));
  }

  get text() {
    return this.characters.join("");
  }

  /** Add a chunk: its text, and its logprobs in OpenAI's form of completions, or null. */
  add(text, logprobs) {
    this.characters.push(...text);
    const first = Math.max(0, this.tokens.length - 1); // its text may have been held back
    (logprobs?.tokens ?? []).forEach((token, i) => {
      this.#append(token, logprobs.text_offset[i], logprobs.token_logprobs[i], logprobs.top_logprobs?.[i]);
    });
    if (this.tokens.length) this.#write(first);
    else if (text) this.#writePlain();
  }

  /** The text is whole: tokens after a stop text, which are not part of it, go. */
  finish() {
    while (this.tokens.length && !this.tokens.at(-1).element.textContent) {
      if (this.tokens.at(-1).token === END) return;
      this.tokens.pop().element.remove();
    }
  }

  #append(token, offset, logprob, alternatives) {
    const element = document.createElement("span");
    const probability = Math.exp(logprob ?? 0);
    element.dataset.shade = EDGES.filter((edge) => probability < edge).length;
    element.setAttribute("role", "option");
    element.setAttribute("aria-selected", "false");
    element.setAttribute("aria-label", `${spoken(token)}, ${percent(probability)}`);
    if (token === END) element.classList.add("end");
    element.tabIndex = this.tokens.length ? -1 : 0;
    this.list.setAttribute("role", "listbox");
    this.list.setAttribute("aria-orientation", "horizontal");
    this.list.setAttribute("aria-label", this.label);
    this.tokens.push({ element, token, offset, probability, alternatives: alternatives ?? {} });
    this.list.append(element);
  }

  /** Text of the tokens from one on: what is between two offsets is the first one's. */
  #write(first) {
    const base = this.tokens[0].offset;
    for (let i = first; i < this.tokens.length; i++) {
      const { element, offset } = this.tokens[i];
      const end = this.tokens[i + 1]?.offset ?? base + this.characters.length;
      mark(element, this.characters.slice(offset - base, end - base).join(""));
    }
  }

  #writePlain() {
    this.plain ??= this.list.appendChild(document.createElement("span"));
    this.plain.textContent = this.text;
  }

  #at(event, also) {
    const option = event.target.closest("[role=option]");
    const token = this.tokens.find(({ element }) => element === option);
    if (!token) return;
    also?.();
    this.details.show(token);
  }

  #move(event) {
    const elements = this.tokens.map(({ element }) => element);
    const now = elements.indexOf(document.activeElement);
    if (now < 0) return;
    const steps = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: elements.length - 1 };
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      steps[event.key] = onNextLine(elements, now, event.key === "ArrowDown" ? 1 : -1);
    }
    const next = elements[steps[event.key]];
    if (event.key in steps) event.preventDefault();
    if (!next) return;
    elements[now].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

/** Write a token's text; the blanks that it begins with are not marked. */
function mark(element, text) {
  const [blanks] = text.trim() ? text.match(/^\s*/) : [""];
  const word = document.createElement("span");
  if (element.dataset.shade > 0) word.className = `surprise-${element.dataset.shade}`;
  word.textContent = text.slice(blanks.length);
  element.replaceChildren(blanks, ...(word.textContent ? [word] : []));
}

/** The index of the element below (direction 1) or above (-1), the nearest on that line. */
function onNextLine(elements, now, direction) {
  const from = elements[now].getBoundingClientRect();
  let line = null;
  let best = now;
  let distance = Infinity;
  for (let i = now + direction; elements[i]; i += direction) {
    const box = elements[i].getClientRects()[0];
    if (!box || (box.top - from.top) * direction < from.height / 2) continue;
    line ??= box.top;
    if (Math.abs(box.top - line) > box.height / 2) break;
    if (Math.abs(box.left - from.left) < distance) [distance, best] = [Math.abs(box.left - from.left), i];
  }
  return best;
}

/** The box with a token's probability and its alternatives. */
export class Details {
  constructor(box) {
    this.box = box;
    this.element = null; // the token's
    this.timer = 0;
    box.addEventListener("pointerenter", () => this.cancel());
    box.addEventListener("pointerleave", () => this.leave());
  }

  get open() {
    return !this.box.hidden;
  }

  show({ element, token, probability, alternatives }) {
    this.cancel();
    this.hide();
    this.element = element;
    element.classList.add("shown");
    element.setAttribute("aria-describedby", this.box.id);
    element.setAttribute("aria-selected", "true");
    const rows = Object.entries(alternatives).map(([text, logprob]) => [text, Math.exp(logprob)]);
    if (!rows.some(([text]) => text === token)) rows.push([token, probability]);
    rows.sort((a, b) => b[1] - a[1]);
    const title = document.createElement("p");
    title.textContent = rows.length > 1 ? "The likeliest next tokens" : "Its probability";
    const list = document.createElement("ol");
    list.append(...rows.map(([text, p]) => row(text, p, text === token)));
    this.box.replaceChildren(title, list);
    this.box.hidden = false;
    this.#place();
  }

  /** Hide soon, unless the pointer comes back. */
  leave() {
    this.cancel();
    this.timer = setTimeout(() => {
      if (this.element !== document.activeElement) this.hide();
    }, HIDE_AFTER);
  }

  cancel() {
    clearTimeout(this.timer);
  }

  hide() {
    this.box.hidden = true;
    this.element?.classList.remove("shown");
    this.element?.removeAttribute("aria-describedby");
    this.element?.setAttribute("aria-selected", "false");
    this.element = null;
  }

  /** Below the token, or above it where there is no room; by CSS at the bottom on a phone. */
  #place() {
    const token = this.element.getClientRects()[0] ?? this.element.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.box;
    const right = document.documentElement.clientWidth - width - 16;
    const below = token.bottom + GAP + height <= window.innerHeight;
    const top = below || token.top < height + GAP ? token.bottom + GAP : token.top - GAP - height;
    this.box.style.setProperty("--x", `${Math.max(16, Math.min(token.left - 8, right)) + window.scrollX}px`);
    this.box.style.setProperty("--y", `${top + window.scrollY}px`);
    const hidden = token.bottom + GAP - this.box.getBoundingClientRect().top;
    if (getComputedStyle(this.box).position === "fixed" && hidden > 0) window.scrollBy(0, hidden);
  }
}

function row(token, probability, chosen) {
  const item = document.createElement("li");
  const text = document.createElement("code");
  text.textContent = visible(token);
  const bar = document.createElement("span");
  bar.className = "bar";
  bar.append(document.createElement("i"));
  bar.firstChild.style.width = `${100 * probability}%`;
  const share = document.createElement("span");
  share.className = "share";
  share.textContent = percent(probability);
  if (chosen) {
    item.className = "chosen";
    const note = document.createElement("span");
    note.className = "visually-hidden";
    note.textContent = " (written)";
    text.append(note);
  }
  item.append(text, bar, share);
  return item;
}

/** A token with its blanks and line breaks in view. */
export function visible(token) {
  return token.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
}

function spoken(token) {
  return token === END ? "end of text" : token.replaceAll("\n", " line break ").trim() || "blank";
}

/** 0.1234 → 12 %. */
export function percent(probability) {
  const value = 100 * probability;
  if (value > 99.9 && value < 100) return "> 99.9 %";
  if (value > 0 && value < 0.01) return "< 0.01 %";
  return `${value >= 99.5 || value === 0 ? value.toFixed(0) : value.toPrecision(2)} %`;
}
