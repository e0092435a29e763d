// Numbers and times as people read them.

const MINUS = "\u2212";

/** 0.8312 as 83.1 %. */
export function percent(share, digits = 1) {
  return share === null || share === undefined ? "\u2013" : `${(100 * share).toFixed(digits)}\u202f%`;
}

/** A difference of two shares in points, with its sign. */
export function points(share, digits = 1) {
  const text = Math.abs(100 * share).toFixed(digits);
  return `${sign(share, text)}${text}`;
}

/** A coefficient, with a real minus sign. */
export function coefficient(value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  return `${value < 0 && Number(text) !== 0 ? MINUS : ""}${text}`;
}

function sign(value, text) {
  if (Number(text) === 0) {
    return "\u00b1";
  }
  return value < 0 ? MINUS : "+";
}

/** A p value, no more precise than it is. */
export function pValue(value) {
  if (value < 0.0001) {
    return "p\u00a0<\u00a00.0001";
  }
  return `p\u00a0=\u00a0${value < 0.01 ? value.toPrecision(2) : value.toFixed(3)}`;
}

/** The accuracies that stand behind a version: of the one served before, and its own. */
export const change = ({ current, candidate, p_value: p }) =>
  `${percent(candidate)}, before it ${percent(current)}, ${pValue(p)}`;

/** The 95 % interval of a gain, in points. */
export const range = ([low, high]) => `95\u202f% interval ${points(low)} to ${points(high)}`;

const DATE = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

/** The time of an answer, short. */
export function when(text) {
  return DATE.format(new Date(text));
}

export function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

/** Seconds, or minutes where there are many. */
export function duration(seconds) {
  return seconds < 90 ? `${seconds.toFixed(seconds < 10 ? 1 : 0)} s` : `${(seconds / 60).toFixed(1)} min`;
}

/** Coefficients in one line, those of zero left out. */
export function mixture(coefficients, digits = 2) {
  const parts = Object.entries(coefficients).filter(([, value]) => Math.abs(value) >= 0.5 * 10 ** -digits);
  return parts.map(([name, value]) => `${name} ${coefficient(value, digits)}`).join(", ");
}

/** What a patch replaces. */
export function patchText(patch) {
  if (patch === null) {
    return "none";
  }
  const known = {
    statistics: `channel statistics of ${plural(patch.recalibrated, "image")}`,
    head: "a fitted last layer",
    frequencies: "class frequencies",
    stream: "scales and shifts trained on unlabelled images, too",
    early: "trained first layers",
  };
  return patch.rungs.map((rung) => known[rung] ?? rung).join(", ");
}

/** The images by which a job judged the soup that was served; null where it does not say, as older jobs. */
export function judgedText(judged) {
  if (!judged) {
    return null;
  }
  const parts = [
    judged.fresh > 0 && plural(judged.fresh, "new image"),
    judged.held_out > 0 && plural(judged.held_out, "held-out answer"),
  ];
  const rest = judged.left_out > 0 ? `; ${plural(judged.left_out, "image")} cannot judge it` : "";
  return `on ${parts.filter(Boolean).join(" and ")}${rest}`;
}

/** The number of a comparison with the same version, and its level; null for a job that was not counted. */
export function attemptText({ attempt, level }) {
  if (!attempt || !level) {
    return null;
  }
  return `Attempt ${attempt} against the version served then: it promotes below p\u00a0=\u00a0${level.toPrecision(2)}.`;
}

/** How thorough an adaptation is, and which part of an answer in two steps. */
export function effortText({ effort, follows, followed_by: later }) {
  if (follows !== null) {
    return "follow-up";
  }
  if (later !== null) {
    return "quick, with a follow-up";
  }
  return effort === "full" ? "full" : "quick";
}
