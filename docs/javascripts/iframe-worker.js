/* Browsers start no worker from file://. There, this class stands in for them: it runs a worker's
 * script in a hidden frame. The search of the theme is such a script (`polyfills` in mkdocs.yml). */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const page = this.frame.contentDocument;
      page.open(); // else Firefox empties the frame once more, later
      page.write("<body>");
      page.close();

      const load = (source) =>
        new Promise((done) => {
          const script = page.createElement("script");
          script.src = source;
          script.onload = done;
          script.onerror = () => this.dispatchEvent(new ErrorEvent("error", { filename: source }));
          page.body.append(script);
        });
      this.scope = this.frame.contentWindow;
      this.scope.importScripts = (...sources) =>
        sources.reduce((before, source) => before.then(() => load(source)), Promise.resolve());
      this.scope.postMessage = (data) =>
        this.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) }));
      this.loaded = load(new URL(url, document.baseURI).href);
    }

    postMessage(data) {
      const message = new MessageEvent("message", { data: structuredClone(data) });
      this.loaded.then(() => this.scope.dispatchEvent(message)); // before, nobody listens
    }

    terminate() {
      this.frame.remove();
    }
  };
}
