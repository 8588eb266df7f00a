// A Vega-Lite figure: drawn anew when its specification changes, its named data replaced without that.
let library = null;
function vegaLibrary() {
  library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "/medprobe/vega.js";
    script.onload = resolve;
    script.onerror = reject;
    document.head.append(script);
  });
  return library;
}

export default {
  template: "<div></div>",
  props: { spec: String, selection: String },
  mounted() {
    this.turn = 0;
    this.draw();
  },
  unmounted() {
    this.turn += 1;
    this.drawn?.finalize();
  },
  watch: {
    spec() {
      this.draw();
    },
  },
  methods: {
    async draw() {
      const turn = ++this.turn;
      await vegaLibrary();
      if (turn !== this.turn || !this.spec) return;
      const canvas = document.createElement("div");
      const drawn = await window.vegaEmbed(canvas, JSON.parse(this.spec), {
        actions: false,
        renderer: "svg",
        tooltip: false,
        loader: { sanitize: () => Promise.reject(new Error("figures load nothing")) },
      });
      if (turn !== this.turn) return drawn.finalize();
      this.drawn?.finalize();
      this.drawn = drawn;
      this.$el.replaceChildren(canvas);
      if (this.selection) this.follow(drawn.view);
      this.$el.dataset.drawn = String(turn);
    },
    follow(view) {
      let timer = null;
      view.addSignalListener(this.selection, (_, value) => {
        clearTimeout(timer);
        timer = setTimeout(() => this.$emit("region", value), 200);
      });
    },
    async put(name, values) {
      if (!this.drawn) return;
      await this.drawn.view.data(name, values).runAsync();
    },
  },
};
