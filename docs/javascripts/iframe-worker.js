// Search in pages that are opened from disk, where browsers refuse workers: the worker's script runs in a hidden frame
// instead. The file's name is the one by which the theme's offline plugin knows such a script.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      this.inside = new Promise((resolve, reject) => {
        frame.onload = () => {
          const inside = frame.contentWindow
          inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
          const script = inside.document.createElement("script")
          script.src = new URL(address, document.baseURI)
          script.onload = () => resolve(inside)
          script.onerror = () => reject(new Error(`cannot load ${script.src}`))
          inside.document.body.append(script)
        }
      })
      document.documentElement.append(frame)
    }

    async postMessage(data) {
      const inside = await this.inside
      inside.dispatchEvent(new MessageEvent("message", { data }))
    }
  }
}
