// Pages opened from a folder: browsers start no workers there, so the search runs in a hidden frame instead.
if (location.protocol === "file:") {
  // As from a worker: a copy, and never before whoever sent it is done.
  const deliver = (target, data) => {
    const copy = structuredClone(data);
    setTimeout(() => target.dispatchEvent(new MessageEvent("message", { data: copy })));
  };
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.addEventListener("message", (event) => this.onmessage?.(event)); // either way of listening
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.inside = frame.contentWindow;
      this.inside.postMessage = (data) => deliver(this, data);
      const script = frame.contentDocument.createElement("script");
      this.ready = new Promise((resolve) => script.addEventListener("load", resolve));
      script.src = url;
      frame.contentDocument.body.append(script);
    }
    postMessage(data) {
      this.ready.then(() => deliver(this.inside, data));
    }
    terminate() {
      this.inside.frameElement.remove();
    }
  };
}
