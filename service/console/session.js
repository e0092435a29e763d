// Who uses the page: the key of this tab, its name and role, and what that role may do.

import { ApiError, forgetKey, get, getKey, setKey, whenUnauthorized } from "./api.js";
import { busy, byId, fill, el, showProblem } from "./dom.js";

const ROLES = ["predict", "adapt", "admin"];
const LEAST = "adapt"; // of who looks around here

let me = { name: null, role: "admin" };
let asked = null; // the key that `me` is about

/** Say if whoever uses the page may do what a role may. */
export const may = (role) => ROLES.indexOf(me.role) >= ROLES.indexOf(role);

/** Return the role of whoever uses the page. */
export const ownRole = () => me.role;

/** Return why somebody may not do what needs a role. */
export const whyNot = (role) => `This needs a key of the role ${role}; yours has the role ${me.role}.`;

/** Disable what the role may not do, and say why; `isUsable` is what else it depends on. Returns the control. */
export function guard(control, { isUsable = true, role = "admin" } = {}) {
  control.disabled = !isUsable || !may(role);
  for (const name of ["title", "aria-description"]) {
    if (may(role)) {
      control.removeAttribute(name);
    } else {
      control.setAttribute(name, whyNot(role));
    }
  }
  return control;
}

/** Set up the field for the key; `onKey` is called with a new one. */
export function setUpSession(onKey) {
  whenUnauthorized((error, hadKey) => askForKey(hadKey ? "This key is not accepted." : null));
  byId("sign-in")
    .querySelector("form")
    .addEventListener("submit", (event) => {
      event.preventDefault();
      setKey(byId("key").value.trim());
      byId("key").value = "";
      showProblem(byId("sign-in-problem"), null);
      busy(event.submitter, onKey);
    });
  byId("sign-out").addEventListener("click", () => {
    forgetKey();
    location.reload();
  });
}

/** Ask the service who this is; returns whether that is enough to look around. */
export async function identify() {
  const key = getKey();
  if (asked === null || asked.key !== key) {
    const found = await get("whoami");
    if (getKey() !== key) {
      return true; // another key was entered meanwhile, and is asked about by itself
    }
    me = found;
    asked = { key };
  }
  if (!may(LEAST)) {
    const { name, role } = me;
    askForKey(`The key ${name} has the role ${role}. The console needs one of the role ${LEAST} or admin.`);
    return false;
  }
  return true;
}

/** Show the page in the place of the field for the key. */
export function showFrame() {
  byId("frame").hidden = false;
  byId("sign-in").hidden = true;
  byId("sign-out").hidden = getKey() === null;
  fill(byId("who"), me.name !== null && [el("strong", {}, me.name), ` (${me.role})`]);
}

function askForKey(problem) {
  forgetKey();
  asked = null;
  byId("frame").hidden = true;
  byId("sign-in").hidden = false;
  byId("sign-out").hidden = true;
  fill(byId("who"));
  showProblem(byId("sign-in-problem"), problem === null ? null : new ApiError(401, "", problem));
  byId("key").focus();
}
