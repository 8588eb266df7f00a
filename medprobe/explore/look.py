"""How the page looks: quiet, dense, legible at 1280 x 800."""

STYLE = """
/* Without a graphics card the processor draws each frame of an animation, in the time of an answer. */
*, *::before, *::after { transition: none !important; animation: none !important; }
.q-ripple { display: none; }
:root { --ink: #1c1c1e; --soft: #f5f6f8; --line: #dcdfe4; --mark: #0072b2; --bad: #a33b00; }
body { color: var(--ink); background: #fff; font: 13px/1.4 system-ui, "Helvetica Neue", Arial, sans-serif; }
.nicegui-content { padding: 0; gap: 0; align-items: stretch; width: 100%; max-width: none; }
.q-btn { white-space: nowrap; }
.top { display: flex; align-items: center; gap: .75rem; height: 40px; padding: 0 1rem; width: 100%;
  border-bottom: 1px solid var(--line); position: sticky; top: 0; background: #fff; z-index: 5; }
h1 { font-size: 15px; font-weight: 650; line-height: 1; margin: 0; }
.status { color: #55595f; flex: 1; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.explorer { display: grid; grid-template-columns: 268px minmax(0, 1fr); width: 100%; }
aside { background: var(--soft); border-right: 1px solid var(--line); padding: .5rem .75rem 2rem; height: calc(100vh - 40px);
  overflow-y: auto; position: sticky; top: 40px; }
aside h2 { font-size: 11px; font-weight: 650; letter-spacing: .04em; text-transform: uppercase; color: #55595f;
  margin: .75rem 0 .2rem; line-height: 1.3; }
.control { margin-bottom: .35rem; min-width: 0; }
.control .caption { font-size: 11.5px; color: #3a3d42; display: flex; justify-content: space-between; gap: .5rem; }
.control .caption .now { font-variant-numeric: tabular-nums; color: var(--mark); }
.control .error, .missing, .general { color: var(--bad); font-size: 12px; overflow-wrap: anywhere; }
.control .error:empty, .missing:empty, .general:empty { display: none; }
.q-field--dense .q-field__control, .q-field--dense .q-field__marginal { min-height: 28px; height: auto; }
.q-field__native, .q-field__input { font-size: 12.5px; overflow-wrap: anywhere; }
.q-field--auto-height.q-field--dense .q-field__control, .q-field--auto-height.q-field--dense .q-field__native
  { min-height: 28px; }
.q-slider { height: 20px; }
.answers { min-width: 0; padding: 0 .75rem 2rem; }
.q-tab-panel { padding: .5rem 0; }
.said { color: #3a3d42; overflow-wrap: anywhere; margin-bottom: .4rem; }
.panels { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .6rem; align-items: start; }
.panel { border: 1px solid var(--line); border-radius: 4px; padding: .35rem; min-width: 0; overflow: hidden; }
.panel.leaderboard, .panel.subgroup, .panel.calibration { grid-column: 1 / -1; }
.figure { overflow-x: auto; }
.figure svg { display: block; max-width: 100%; height: auto; }
.missing { color: #55595f; padding: .3rem; }
.measures { display: grid; grid-template-columns: repeat(4, 1fr); gap: .4rem; margin: 0 0 .3rem; }
.measures > div { background: var(--soft); border-radius: 4px; padding: .25rem .4rem; }
.measures .name { font-size: 11px; color: #55595f; }
.measures .value { font-size: 17px; font-variant-numeric: tabular-nums; line-height: 1.2; }
.measures .ends { font-size: 11px; color: #55595f; font-variant-numeric: tabular-nums; }
.rules { display: flex; flex-wrap: wrap; gap: .2rem; }
.rules .q-chip { max-width: 100%; font-size: 11.5px; margin: 0; }
.line { display: flex; gap: .3rem; align-items: end; }
.line > * { min-width: 0; flex: 1; }
.line > .q-btn { flex: 0 0 auto; }
.images { display: grid; grid-template-columns: 460px minmax(0, 1fr); gap: .75rem; align-items: start; }
.images > .left { position: sticky; top: 48px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); gap: .4rem; }
.entry { border: 1px solid var(--line); border-radius: 4px; padding: .25rem; font-size: 11px; line-height: 1.3; min-width: 0;
  overflow-wrap: anywhere; cursor: pointer; background: #fff; text-align: left; }
.entry:hover, .entry:focus-visible { border-color: var(--mark); outline: none; }
.entry.wrong { border-left: 3px solid #d55e00; }
.entry img, .entry .blank { width: 100%; aspect-ratio: 1; object-fit: contain; background: #101114; border-radius: 2px;
  display: block; }
.entry .blank { background: repeating-linear-gradient(45deg, #eceef1 0 6px, #f7f8f9 6px 12px); color: #55595f; display: grid;
  place-items: center; }
.entry .id { color: #55595f; max-height: 2.6em; overflow: hidden; }
.reproduce { width: min(860px, 92vw); max-width: none !important; gap: .2rem; }
.reproduce .bar { display: flex; justify-content: space-between; align-items: center; width: 100%; }
.reproduce .name { font-weight: 600; }
.code { white-space: pre-wrap; overflow-wrap: anywhere; font: 12px/1.45 ui-monospace, "DejaVu Sans Mono", monospace;
  background: var(--soft); border: 1px solid var(--line); border-radius: 4px; padding: .5rem; width: 100%; max-height: 34vh;
  overflow-y: auto; }
"""
