// Requests to the service, with the key of this tab where there is one. Errors come from problem details.

const KEY = "saucier-key";

/** An answer other than success, or none at all (status 0). */
export class ApiError extends Error {
  constructor(status, title, detail, errors = []) {
    super(detail);
    this.status = status;
    this.title = title;
    this.errors = errors;
  }
}

export const getKey = () => sessionStorage.getItem(KEY);
export const setKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);

let onUnauthorized = () => {};

/** Name what is called when the service asks for a key. */
export function whenUnauthorized(action) {
  onUnauthorized = action;
}

/** Send a request and return the answer; paths are relative to the page, so a prefix before it stays. */
async function send(method, path, { json, body, accept = "application/json", signal } = {}) {
  const headers = new Headers({ Accept: accept });
  const key = getKey();
  if (key !== null) {
    headers.set("Authorization", `Bearer ${key}`);
  }
  if (json !== undefined) {
    headers.set("Content-Type", "application/json");
    body = JSON.stringify(json);
  }
  let answer;
  try {
    answer = await fetch(path, { method, headers, body, signal, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") {
      throw error;
    }
    throw new ApiError(0, "No answer", "The service cannot be reached.");
  }
  if (!answer.ok) {
    const error = await asError(answer);
    if (answer.status === 401 && key === getKey()) {
      onUnauthorized(error, key !== null); // a late answer to an earlier key says nothing about this one
    }
    throw error;
  }
  return answer;
}

async function asError(answer) {
  let problem = {};
  try {
    problem = await answer.json();
  } catch {
    // of a proxy in between: its status is all there is
  }
  const wait = answer.headers.get("Retry-After");
  const later = wait !== null && /^\d+$/.test(wait) ? ` Try again in ${wait} s.` : "";
  const detail = typeof problem.detail === "string" ? problem.detail : `The service answered ${answer.status}.`;
  const errors = Array.isArray(problem.errors) ? problem.errors : [];
  return new ApiError(answer.status, problem.title ?? answer.statusText, detail + later, errors);
}

/** Send a request and return the JSON of the answer, null where it has none. */
export async function call(method, path, options) {
  const answer = await send(method, path, options);
  return answer.status === 204 ? null : answer.json();
}

export const get = (path, options) => call("GET", path, options);
export const at = (name, rest = "") => `deployments/${encodeURIComponent(name)}${rest}`;

/** Return the first entries of a list that comes in pages, all without `most`, and where the next page begins. */
export async function list(path, key, most = Infinity) {
  const found = [];
  let before = null;
  do {
    const page = await get(before === null ? path : `${path}?before=${encodeURIComponent(before)}`);
    found.push(...page[key]);
    before = page.next;
  } while (before !== null && found.length < most);
  return { found, next: before };
}

const RECONNECT_MS = 1000;

/** Yield what a job looks like each time that it changes; the last one is finished. Survives a stream that breaks. */
export async function* follow(job, signal) {
  while (!signal.aborted) {
    try {
      const answer = await send("GET", `jobs/${job}/events`, { accept: "text/event-stream", signal });
      for await (const { event, data } of events(answer.body)) {
        yield JSON.parse(data);
        if (event === "done") {
          return;
        }
      }
    } catch (error) {
      if (error.name === "AbortError" || (error.status >= 400 && error.status < 500)) {
        throw error;
      }
    }
    await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS));
  }
}

/** Yield the server-sent events of a stream. EventSource cannot send a key, so they are read here. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) {
      return;
    }
    text += value.replaceAll("\r\n", "\n");
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const found = parsed(text.slice(0, end));
      text = text.slice(end + 2);
      if (found.data !== "") {
        yield found;
      }
    }
  }
}

function parsed(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) {
      event = line.slice(6).trim();
    } else if (line.startsWith("data:")) {
      data.push(line.slice(5).trimStart());
    }
  }
  return { event, data: data.join("\n") };
}
