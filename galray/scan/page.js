"use strict";
// Grades live in one object: {grader, grades: {grader: {galaxy id: {grade, utc}}}}. Ids are text
// throughout: a JavaScript number would round them to other galaxies.
(() => {
  const GRADES = ["A", "B", "C", "reject"];
  const COLUMNS = ["galaxy_id", "grade", "grader", "graded_utc"];
  const GRADE_KEYS = { a: "A", b: "B", c: "C", x: "reject", r: "reject", delete: null, backspace: null };
  const STORE = `galray-grades:${document.body.dataset.runId}`;
  const STEP_SIZE = 20;
  const PER_PAGE = 200;

  const find = (id) => document.getElementById(id);
  const grid = find("grid");
  const cards = [...grid.children];
  const cardOf = new Map(cards.map((card) => [card.dataset.id, card]));
  const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;

  let state = load();
  let history = []; // of undoable steps, each a list of [id, previous entry or undefined]
  let shown = []; // all that pass the filters, in order; one page of them is visible
  let current = null;

  // --- grades and their keeping ---------------------------------------------------------------

  function load() {
    const empty = { grader: "", grades: {} };
    try {
      return JSON.parse(localStorage.getItem(STORE)) ?? empty;
    } catch {
      return empty;
    }
  }

  function save() {
    try {
      localStorage.setItem(STORE, JSON.stringify(state));
      find("warning").hidden = true;
    } catch {
      warn("This browser does not keep the grades. Export them before you close the page.");
    }
  }

  const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
  const mine = () => (state.grades[state.grader] ??= {});
  const gradeOf = (card) => mine()[card.dataset.id]?.grade ?? null;

  function set(id, entry) {
    if (entry) mine()[id] = entry;
    else delete mine()[id];
  }

  function grade(value) {
    if (!current) return;
    const id = current.dataset.id;
    history.push([[id, mine()[id]]]);
    set(id, value && { grade: value, utc: new Date().toISOString() });
    save();
    say(`Candidate ${number(current)}: ${value ?? "no grade"}. ${progressText()}.`);
    const following = value && find("advance").checked ? neighbour(1) : current;
    refresh(following);
  }

  function undo() {
    const step = history.pop();
    if (!step) return say("Nothing to undo.", true);
    step.forEach(([id, previous]) => set(id, previous));
    save();
    say(step.length === 1 ? "Undone." : `Undone: ${step.length} imported grades.`, true);
    refresh(cardOf.get(step[0][0]));
  }

  // --- the grader -----------------------------------------------------------------------------

  function rename(name) {
    const kept = { ...state.grades[name], ...mine() };
    delete state.grades[state.grader];
    state.grader = name;
    state.grades[name] = kept;
  }

  function changeGrader() {
    const name = find("grader").value.trim();
    if (!name || name === state.grader) return void (find("grader").value = state.grader);
    const count = Object.keys(mine()).length;
    if (!state.grader || !count) return become(name, rename);
    find("old-name").textContent = state.grader;
    find("old-count").textContent = plural(count, "grade");
    find("new-name").textContent = name;
    find("grader-dialog").showModal();
  }

  function become(name, how) {
    how(name);
    history = [];
    find("grader").value = name;
    save();
    refresh(current);
  }

  function afterGraderDialog() {
    const answer = find("grader-dialog").returnValue;
    const name = find("grader").value.trim();
    if (answer === "rename") become(name, rename);
    else if (answer === "switch") become(name, () => (state.grader = name));
    else find("grader").value = state.grader;
    find("grader-dialog").returnValue = "";
  }

  // --- what is shown --------------------------------------------------------------------------

  const passes = {
    grade: (card, wanted) => wanted === "all" || (gradeOf(card) ?? "none") === wanted,
    flag: (card, wanted) => {
      const flags = card.dataset.flags.split(" ").filter(Boolean);
      return wanted === "all" || (wanted === "clean" ? !flags.length : flags.includes(wanted));
    },
    known: (card, wanted) => wanted === "all" || card.dataset.known === wanted,
    floor: (card, floor) => Number(card.dataset.probability) >= floor,
    search: ({ dataset }, text) =>
      !text || [dataset.id, dataset.keyTile, dataset.name].some((field) => field.toLowerCase().includes(text)),
  };

  // Best first where more is better; text by its letters; ids as whole numbers; what is missing last.
  const DESCENDING = ["score", "earlyType", "radiusArcsec"];
  const TEXTS = ["tile"];

  function keyOf(card, name) {
    const text = card.dataset[`key${name[0].toUpperCase()}${name.slice(1)}`];
    if (text === "") return null;
    if (TEXTS.includes(name)) return text;
    return name === "galaxyId" ? BigInt(text) : Number(text);
  }

  function sort() {
    const name = find("sort").value.replace(/_(.)/g, (_, letter) => letter.toUpperCase());
    const reversed = find("reverse").getAttribute("aria-pressed") === "true";
    const sign = DESCENDING.includes(name) === reversed ? 1 : -1;
    const keyed = cards.map((card) => [keyOf(card, name), card]);
    keyed.sort(([a, p], [b, q]) => {
      if (a === null || b === null) return (a === null) - (b === null) || number(p) - number(q);
      return a < b ? -sign : a > b ? sign : number(p) - number(q);
    });
    grid.append(...keyed.map(([, card]) => card));
    refresh(current);
  }

  const numbers = new Map(cards.map((card, i) => [card, i + 1]));
  const number = (card) => numbers.get(card);

  function refresh(wanted) {
    const [byGrade, byFlag, byKnown] = ["grade-filter", "flag-filter", "known-filter"].map(chosen);
    const [floor, text] = [Number(find("floor").value), find("search").value.trim().toLowerCase()];
    shown = [...grid.children].filter(
      (card) =>
        passes.grade(card, byGrade) &&
        passes.flag(card, byFlag) &&
        passes.known(card, byKnown) &&
        passes.floor(card, floor) &&
        passes.search(card, text),
    );
    cards.forEach(showGrade);
    find("floor-text").textContent = Number(floor.toPrecision(2));
    find("nothing").hidden = shown.length > 0;
    showProgress();
    select(shown.includes(wanted) ? wanted : (shown[0] ?? null));
  }

  // --- pages of the list ----------------------------------------------------------------------

  const pageOf = (card) => Math.max(0, Math.floor(shown.indexOf(card) / PER_PAGE));

  function showPage(page) {
    const visible = new Set(shown.slice(page * PER_PAGE, (page + 1) * PER_PAGE));
    cards.forEach((card) => (card.hidden = !visible.has(card)));
    const last = Math.max(0, Math.ceil(shown.length / PER_PAGE) - 1);
    find("pages").hidden = last === 0;
    find("page-text").textContent = `Page ${page + 1} of ${last + 1}`;
    find("page-back").disabled = page === 0;
    find("page-on").disabled = page === last;
  }

  function turn(step) {
    const first = (pageOf(current) + step) * PER_PAGE;
    if (first >= 0 && first < shown.length) select(shown[first]);
  }

  function showGrade(card) {
    const given = gradeOf(card);
    card.dataset.grade = given ?? "";
    card.querySelector(".badge").textContent = given === "reject" ? "✕" : (given ?? "");
    card.setAttribute("aria-label", `Candidate ${number(card)}, ${given ?? "ungraded"}`);
  }

  const counts = () => {
    const tally = { all: cards.length, none: 0, A: 0, B: 0, C: 0, reject: 0 };
    cards.forEach((card) => tally[gradeOf(card) ?? "none"]++);
    return tally;
  };
  const progressText = () => `${cards.length - counts().none} of ${cards.length} graded`;

  function showProgress() {
    const tally = counts();
    find("progress-text").textContent = progressText();
    document.querySelectorAll("[data-count]").forEach((mark) => (mark.textContent = tally[mark.dataset.count]));
    document.querySelectorAll("[data-of]").forEach((bar) => {
      bar.style.width = `${(100 * tally[bar.dataset.of]) / Math.max(cards.length, 1)}%`;
    });
  }

  // --- the candidate in hand ------------------------------------------------------------------

  function select(card, { focus = true } = {}) {
    if (current) {
      current.removeAttribute("aria-current");
      current.tabIndex = -1;
    }
    current = card;
    showPage(pageOf(card));
    document.body.classList.toggle("empty", !card);
    find("where").textContent = card ? `${shown.indexOf(card) + 1} of ${shown.length}` : "";
    showLarge(card);
    if (!card) return;
    card.setAttribute("aria-current", "true");
    card.tabIndex = 0;
    if (focus && !document.activeElement?.closest("header, aside, dialog")) card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest" });
  }

  function showLarge(card) {
    const image = card?.querySelector(".cutout > :first-child").cloneNode(true);
    find("large").replaceChildren(...(image ? [image] : []));
    find("details").replaceChildren(...(card ? [card.querySelector("template").content.cloneNode(true)] : []));
    const given = card && gradeOf(card);
    document.querySelectorAll("button[data-grade]").forEach((button) => {
      button.setAttribute("aria-pressed", String(button.dataset.grade === given));
    });
  }

  const neighbour = (step) => shown[Math.min(Math.max(shown.indexOf(current) + step, 0), shown.length - 1)] ?? null;
  const move = (step) => shown.length && select(neighbour(step));

  function columns() {
    const page = shown.filter((card) => !card.hidden);
    const firstOfNext = page.findIndex((card) => card.offsetTop > page[0].offsetTop);
    return firstOfNext < 0 ? page.length : firstOfNext;
  }

  function nextUngraded() {
    const here = shown.indexOf(current);
    const following = [...shown.slice(here + 1), ...shown.slice(0, here)].find((card) => !gradeOf(card));
    if (following) select(following);
    else say("Every candidate shown is graded.", true);
  }

  // --- CSV ------------------------------------------------------------------------------------

  const quote = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

  function exportGrades() {
    if (!state.grader) {
      find("grader").focus();
      return say("Enter your name first: every grade carries it.", true);
    }
    const rows = cards
      .filter(gradeOf)
      .map(({ dataset: { id } }) => [id, mine()[id].grade, state.grader, mine()[id].utc])
      .sort((p, q) => (p[3] < q[3] ? -1 : 1));
    if (!rows.length) return say("No grade is given yet.", true);
    const text = [COLUMNS, ...rows].map((row) => row.map(quote).join(",") + "\r\n").join("");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = `grades-${document.body.dataset.runId}-${state.grader}.csv`.replace(/[^\w.-]+/g, "_");
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    say(`Exported ${plural(rows.length, "grade")}.`, true);
  }

  // One field (quoted, with "" for a quote, or plain) and what ends it.
  function parseCsv(text) {
    const field = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n|\n|\r|$)/gy;
    const rows = [[]];
    for (let match; field.lastIndex < text.length && (match = field.exec(text)); ) {
      rows.at(-1).push(match[1]?.replaceAll('""', '"') ?? match[2]);
      if (match[3] !== ",") rows.push([]);
    }
    return rows.filter((row) => row.some((value) => value.trim()));
  }

  function readGrades(text) {
    const [header, ...rows] = parseCsv(text.replace(/^\uFEFF/, ""));
    const at = COLUMNS.map((name) => (header ?? []).findIndex((found) => found.trim().toLowerCase() === name));
    if (at.slice(0, 3).includes(-1)) throw new Error(`it lacks one of the columns ${COLUMNS.join(", ")}`);
    return rows.map((row) => {
      const [id, given, grader, utc] = at.map((i) => row[i]?.trim() ?? "");
      return { id, grade: GRADES.find((name) => name.toLowerCase() === given.toLowerCase()), grader, utc };
    });
  }

  function takeUp(rows) {
    const known = rows.filter((row) => cardOf.has(row.id) && row.grade && row.grader);
    if (!state.grader && new Set(known.map((row) => row.grader)).size === 1) {
      find("grader").value = known[0].grader;
      rename(known[0].grader);
    }
    const own = known.filter((row) => row.grader === state.grader);
    const before = new Map(own.map((row) => [row.id, mine()[row.id]]));
    own.forEach((row) => set(row.id, { grade: row.grade, utc: row.utc || new Date().toISOString() }));
    if (before.size) history.push([...before]);
    return { taken: before.size, foreign: known.length - own.length, unknown: rows.length - known.length };
  }

  async function importGrades(file) {
    try {
      const { taken, foreign, unknown } = takeUp(readGrades(await file.text()));
      const left = [
        foreign && `${foreign} by other graders left out: enter that name to take them up`,
        unknown && `${unknown} left out: not of this list, or without a valid grade and grader`,
      ].filter(Boolean);
      save();
      refresh(current);
      say([`Imported ${plural(taken, "grade")}`, ...left].join("; ") + ".", true);
    } catch (error) {
      say(`${file.name} cannot be read: ${error.message}.`, true);
    }
  }

  // --- messages, display, keys ----------------------------------------------------------------

  let hush;
  function say(text, visibly = false) {
    find("said").textContent = text;
    find("said").classList.toggle("visible", visibly);
    clearTimeout(hush);
    hush = setTimeout(() => find("said").classList.remove("visible"), 6000);
  }

  function warn(text) {
    find("warning").textContent = text;
    find("warning").hidden = false;
  }

  function display() {
    const root = document.documentElement.style;
    root.setProperty("--size", `${find("size").value}px`);
    root.setProperty("--rendering", find("pixels").checked ? "pixelated" : "auto");
    const inverted = find("invert").checked ? " invert(1) hue-rotate(180deg)" : ""; // red dust stays red
    root.setProperty("--filter", `brightness(${find("brightness").value})${inverted}`);
    document.body.classList.toggle("blind", find("blind").checked);
  }

  function resize(step) {
    find("size").value = Number(find("size").value) + step;
    display();
  }

  function toggle(id) {
    find(id).checked = !find(id).checked;
    display();
  }

  function showAll() {
    document.querySelectorAll("input[value='all']").forEach((input) => (input.checked = true));
    find("floor").value = 0;
    find("search").value = "";
    refresh(current);
  }

  const KEYS = {
    u: undo,
    arrowleft: () => move(-1),
    k: () => move(-1),
    arrowright: () => move(1),
    j: () => move(1),
    arrowup: () => shown.indexOf(current) >= columns() && move(-columns()),
    arrowdown: () => move(columns()),
    home: () => move(-shown.length),
    end: () => move(shown.length),
    n: nextUngraded,
    pageup: () => turn(-1),
    pagedown: () => turn(1),
    h: () => toggle("blind"),
    "/": () => find("search").focus(),
    "+": () => resize(STEP_SIZE),
    "=": () => resize(STEP_SIZE),
    "-": () => resize(-STEP_SIZE),
    i: () => toggle("invert"),
    p: () => toggle("pixels"),
    o: () => find("details").querySelector("a")?.click(),
    "?": () => find("help-dialog").showModal(),
  };
  const MOVES = ["arrowleft", "arrowright", "arrowup", "arrowdown", "home", "end"];

  function onKey(event) {
    const key = event.key.toLowerCase();
    const within = (selector) => event.target.closest?.(selector);
    if (within("dialog, input[type=text], select")) return;
    if (MOVES.includes(key) && within("input")) return; // sliders and choices need their arrows
    if ((event.ctrlKey || event.metaKey) && key === "z" && !event.shiftKey) {
      event.preventDefault();
      return undo();
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const action = key in GRADE_KEYS ? () => grade(GRADE_KEYS[key]) : KEYS[key];
    if (!action || (event.repeat && key in GRADE_KEYS)) return; // a key held down grades once
    event.preventDefault();
    action();
  }

  // --- wiring ---------------------------------------------------------------------------------

  document.addEventListener("keydown", onKey);
  grid.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (card) select(card);
  });
  document.querySelectorAll("button[data-grade]").forEach((button) => {
    button.addEventListener("click", () => grade(button.dataset.grade));
  });
  document.querySelector("header").addEventListener("click", (event) => {
    const isControl = event.target.matches("input[type=radio], input[type=range], input[type=checkbox]");
    if (event.detail && isControl) current?.focus({ preventScroll: true }); // a mouse gives the arrows back
  });
  find("sort").addEventListener("change", () => {
    sort();
    current?.focus({ preventScroll: true }); // the letters are grades again
  });
  find("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === "Escape") current?.focus({ preventScroll: true });
  });
  find("page-back").addEventListener("click", () => turn(-1));
  find("page-on").addEventListener("click", () => turn(1));
  ["grade-filter", "flag-filter", "known-filter", "floor", "search"].forEach((id) => find(id).addEventListener("input", () => refresh(current)));
  ["size", "brightness", "pixels", "invert", "blind"].forEach((id) => find(id).addEventListener("input", display));
  find("reverse").addEventListener("click", (event) => {
    const button = event.currentTarget;
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    sort();
  });
  find("previous").addEventListener("click", () => move(-1));
  find("next").addEventListener("click", () => move(1));
  find("undo").addEventListener("click", undo);
  find("show-all")?.addEventListener("click", showAll);
  find("grader").addEventListener("change", changeGrader);
  find("grader").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // or the same key press would answer the dialog that a new name opens
    event.target.blur();
  });
  find("grader-dialog").addEventListener("close", afterGraderDialog);
  find("export").addEventListener("click", exportGrades);
  find("import").addEventListener("click", () => find("import-file").click());
  find("import-file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file) importGrades(file).then(() => (event.target.value = ""));
  });
  find("help").addEventListener("click", () => find("help-dialog").showModal());
  window.addEventListener("storage", (event) => {
    if (event.key !== STORE) return; // the same page in another tab has saved
    state = load();
    history = [];
    find("grader").value = state.grader;
    refresh(current);
  });

  find("grader").value = state.grader;
  display();
  sort();
  select([...grid.children].find((card) => !gradeOf(card)) ?? grid.children[0] ?? null);
})();
