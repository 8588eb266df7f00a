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
  props: { spec: String, selection: String, question: Number },
  mounted() {
    this.turn = 0;
    this.$watch(() => [this.spec, this.question], this.draw);
    this.draw();
  },
  unmounted() {
    this.turn += 1;
    this.drawn?.finalize();
  },
  methods: {
    async draw() {
      const turn = ++this.turn;
      await vegaLibrary();
      if (turn !== this.turn || !this.spec) return;
      if (this.spec === this.shown) return this.told();
      const canvas = document.createElement("div");
      const spec = this.spec;
      const drawn = await window.vegaEmbed(canvas, JSON.parse(spec), {
        actions: false,
        renderer: "svg",
        tooltip: false,
        loader: { sanitize: () => Promise.reject(new Error("figures load nothing")) },
      });
      if (turn !== this.turn) return drawn.finalize();
      this.drawn?.finalize();
      [this.drawn, this.shown] = [drawn, spec];
      this.$el.replaceChildren(canvas);
      if (this.selection) this.follow(drawn.view);
      this.$el.dataset.drawn = String(turn);
      this.told();
    },
    told() {
      this.$el.dataset.question = String(this.question);
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
