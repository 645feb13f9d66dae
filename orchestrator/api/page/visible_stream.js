// A stream that is open only while the tab is visible: a browser opens six connections to a server at most, in all tabs.
export class VisibleStream {
  #end = null;

  // `open(lastId)` opens it after the event that came last, and returns a function that ends it.
  constructor(open) {
    this.open = open;
    this.lastId = null;
    this.turn = () => {
      if (document.hidden) this.#close();
      else if (!this.#end) this.#end = this.open(this.lastId);
    };
    document.addEventListener("visibilitychange", this.turn);
    this.turn();
  }

  stop() {
    document.removeEventListener("visibilitychange", this.turn);
    this.#close();
  }

  // From the beginning, or with other parameters.
  reopen() {
    this.#close();
    this.lastId = null;
    this.turn();
  }

  #close() {
    this.#end?.();
    this.#end = null;
  }
}
