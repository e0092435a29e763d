// Elements, problems, dialogs, announcements. Text only ever becomes text.

/** Return an element. Properties named on... are listeners, the others attributes; false and null leave one out. */
export function el(tag, properties, ...children) {
  return build(document.createElement(tag), properties, children);
}

/** Return an element of a drawing. */
export function svg(tag, properties, ...children) {
  return build(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function build(node, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (name.startsWith("on")) {
      node.addEventListener(name.slice(2), value);
    } else if (value === true) {
      node.setAttribute(name, "");
    } else if (value !== false && value !== null && value !== undefined) {
      node.setAttribute(name, value);
    }
  }
  node.append(...present(children));
  return node;
}

function present(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}

/** Replace what a node holds. */
export function fill(node, ...children) {
  node.replaceChildren(...present(children));
}

export const byId = (id) => document.getElementById(id);

let spoken = 0;

/** Say something to those who do not see the page change. */
export function announce(text) {
  const region = byId("announcements");
  region.textContent = "";
  clearTimeout(spoken);
  spoken = setTimeout(() => (region.textContent = text), 60);
}

/** Show what went wrong, from the problem details of an answer; null takes it away. */
export function showProblem(node, error, ...more) {
  if (error === null) {
    fill(node);
    return;
  }
  const fields = error.errors ?? [];
  const said = fields.length === 1 && error.message.includes(fields[0].message);
  fill(
    node,
    el(
      "div",
      { class: "problem", role: "alert" },
      el("p", {}, el("strong", {}, error.title ? `${error.title}. ` : ""), error.message),
      fields.length > 0 &&
        !said &&
        el(
          "ul",
          {},
          fields.slice(0, 8).map(({ field, message }) => el("li", {}, el("code", {}, field), ` ${message}`)),
        ),
      more,
    ),
  );
}

/** Ask before something is done; returns true if it shall be. The safe answer, `otherwise`, has the focus. */
export function confirm({ title, body, action, otherwise = "Cancel", danger = false }) {
  const dialog = byId("dialog");
  const yes = byId("dialog-yes");
  const section = document.activeElement.closest("section");
  byId("dialog-no").textContent = otherwise;
  byId("dialog-title").textContent = title;
  fill(byId("dialog-body"), body);
  yes.textContent = action;
  yes.className = danger ? "danger solid" : "primary";
  return new Promise((resolve) => {
    const answer = (agreed) => () => {
      byId("dialog-no").onclick = yes.onclick = dialog.oncancel = null;
      dialog.close();
      if (dialog.contains(document.activeElement)) {
        document.activeElement.blur(); // what had the focus before is gone: its section was drawn again meanwhile
      }
      goOnFrom(section);
      resolve(agreed);
    };
    byId("dialog-no").onclick = dialog.oncancel = answer(false);
    yes.onclick = answer(true);
    dialog.showModal();
    byId("dialog-no").focus();
  });
}

/** Move the focus to the heading of a section, where what had it in there is gone. */
export function goOnFrom(section) {
  if (section !== null && document.activeElement === document.body) {
    const heading = section.querySelector("h2");
    heading.tabIndex = -1;
    heading.focus({ preventScroll: true });
  }
}

/** Run an action that a button stands for: it cannot be pressed twice meanwhile, and keeps the focus. */
export async function busy(button, action) {
  if (button.getAttribute("aria-disabled") === "true") {
    return;
  }
  button.setAttribute("aria-disabled", "true");
  try {
    await action();
  } finally {
    button.removeAttribute("aria-disabled");
  }
}
