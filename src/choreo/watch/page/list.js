// A list of any length: only what can be seen is in the page, and only that is asked for, 50 at a time.
import { $, call, element, query } from "./server.js";

const HEIGHT = 58, PAGE = 50, KEPT = 40; // of a line; games in a page; pages that are kept

export class GameList {
  // draw: makes a line's contents from a game. chosen: is told of the game that is chosen, and
  // whether by pointing at it.
  constructor(draw, chosen) {
    this.draw = draw;
    this.chosen = chosen;
    this.box = $("list");
    this.rows = $("list-rows");
    this.place = -1;
    this.forget();
    this.box.addEventListener("scroll", () => this.soon());
    new ResizeObserver(() => this.soon()).observe(this.box);
    this.rows.addEventListener("click", (event) => {
      const line = event.target.closest(".line");
      if (line) this.choose(Number(line.dataset.place), true);
    });
  }

  forget() {
    this.pages = new Map();
    this.waiting = new Map();
    this.version = null;
    this.total = 0;
    this.turn = (this.turn || 0) + 1;
  }

  // Asks anew. stay: keep the place in the list. Returns whether nobody has asked anew meanwhile.
  async ask(question, stay = false) {
    this.forget();
    this.question = question;
    const turn = this.turn;
    if (!stay) this.box.scrollTop = 0;
    await this.load(stay ? Math.floor(this.box.scrollTop / HEIGHT / PAGE) : 0);
    if (turn !== this.turn) return false;
    this.render();
    return true;
  }

  async load(page) {
    if (this.pages.has(page) || this.waiting.has(page)) return this.waiting.get(page);
    const turn = this.turn, stop = new AbortController();
    const asked = query({ ...this.question, at: page * PAGE, most: PAGE, version: this.version });
    const work = call(`games?${asked}`, stop.signal).then((found) => {
      if (turn !== this.turn) return;
      if (this.version !== null && found.version !== this.version) this.pages.clear(); // it was made anew meanwhile
      this.version = found.version;
      this.total = found.total;
      this.pages.set(page, found.games);
      if (this.pages.size > KEPT) this.pages.delete(this.pages.keys().next().value);
    }).catch((error) => { if (error.name !== "AbortError") throw error; }).finally(() => { if (turn === this.turn) this.waiting.delete(page); });
    work.stop = () => { stop.abort(); this.waiting.delete(page); };
    this.waiting.set(page, work);
    return work;
  }

  at(place) {
    return this.pages.get(Math.floor(place / PAGE))?.[place % PAGE];
  }

  soon() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => { this.frame = null; this.render(); });
  }

  render() {
    if (this.version === null) return; // the first answer is still to come
    this.rows.style.height = `${this.total * HEIGHT}px`;
    const first = Math.max(0, Math.floor(this.box.scrollTop / HEIGHT) - 4);
    const last = Math.min(this.total, Math.ceil((this.box.scrollTop + this.box.clientHeight) / HEIGHT) + 4);
    const wanted = new Set();
    for (let place = first; place < last; place++) wanted.add(Math.floor(place / PAGE));
    for (const [page, work] of this.waiting) if (!wanted.has(page)) work.stop?.(); // scrolled past it
    for (const page of wanted) if (!this.pages.has(page) && !this.waiting.has(page)) this.load(page).then(() => this.soon()).catch(() => {});
    const lines = [];
    for (let place = first; place < last; place++) {
      const line = element("div", undefined, "line"), game = this.at(place);
      line.id = `game-${place}`;
      line.dataset.place = place;
      line.setAttribute("role", "option");
      line.setAttribute("aria-selected", String(place === this.place));
      line.setAttribute("aria-posinset", place + 1);
      line.setAttribute("aria-setsize", this.total);
      line.style.top = `${place * HEIGHT}px`;
      if (game) line.append(...this.draw(game));
      else line.append(element("p", "…", "soft"));
      lines.push(line);
    }
    this.rows.replaceChildren(...lines);
    if (this.place >= 0) this.box.setAttribute("aria-activedescendant", `game-${this.place}`);
  }

  async choose(place, tapped = false) {
    if (!this.total) return;
    this.place = Math.max(0, Math.min(this.total - 1, place));
    const top = this.place * HEIGHT;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + HEIGHT > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + HEIGHT - this.box.clientHeight;
    await this.load(Math.floor(this.place / PAGE));
    this.render();
    const game = this.at(this.place);
    if (game) this.chosen(game, tapped);
  }
}
