// The labelled images that are about to be sent: by folder, each with its class.

import { el, fill } from "./dom.js";
import { plural } from "./format.js";
import { ACCEPTED, acceptDrops, chosenFiles, isArchive, isHiddenFile, isPicture } from "./files.js";

const THUMBNAILS = 6; // of each folder
const UNLABELLED = "-";

export function createStaging({ onChange }) {
  let classes = [];
  let groups = new Map(); // by folder: { files, label, urls }
  let archive = null;
  let refused = [];
  const list = el("div", { class: "staged" });
  const input = (id, text, properties) => {
    const node = el("input", { type: "file", id, multiple: true, class: "hidden", ...properties });
    node.addEventListener("change", () => {
      add(chosenFiles(node));
      node.value = "";
    });
    return el("span", { class: "picker" }, node, el("label", { for: id, class: "button" }, text));
  };
  const zone = el(
    "div",
    { class: "drop" },
    el("p", {}, "Drop a folder with one folder per class, a zip or tar of one, or images."),
    el(
      "div",
      { class: "row" },
      input("pick-folder", "Choose a folder", { webkitdirectory: true }),
      input("pick-files", "Choose files", { accept: ACCEPTED }),
    ),
  );
  acceptDrops(zone, add);

  function add(found) {
    refused = [];
    for (const { file, folder } of found.filter(({ file }) => !isHiddenFile(file))) {
      if (isArchive(file)) {
        archive = file;
      } else if (isPicture(file)) {
        group(folder).files.push(file);
      } else {
        refused.push(file.name);
      }
    }
    changed();
  }

  function group(folder) {
    if (!groups.has(folder)) {
      groups.set(folder, { files: [], label: guess(folder), urls: [] });
    }
    return groups.get(folder);
  }

  /** Return the class that a folder is named after, "" if none. */
  function guess(folder) {
    const same = (name) => name.toLowerCase() === folder.toLowerCase();
    return classes.includes(folder) ? folder : (classes.find(same) ?? "");
  }

  function clear() {
    groups.forEach(({ urls }) => urls.forEach((url) => URL.revokeObjectURL(url)));
    groups = new Map();
    archive = null;
    refused = [];
    changed();
  }

  function changed() {
    fill(
      list,
      archive && archiveRow(),
      [...groups]
        .sort(([one], [other]) => one.localeCompare(other))
        .map(([folder, staged], at) => groupRow(folder, staged, at)),
      refused.length > 0 && skipped(),
      (groups.size > 0 || archive !== null) && total(),
    );
    onChange();
  }

  function total() {
    const count = [...groups.values()].reduce((sum, { files }) => sum + files.length, 0);
    const parts = [
      count > 0 && `${plural(count, "image")} in ${plural(groups.size, "group")}`,
      archive && "an archive",
    ];
    const text = parts.filter(Boolean).join(", ");
    const remove = el("button", { type: "button", class: "small", onclick: clear }, "Remove all");
    return el("div", { class: "group plain" }, el("span", { class: "group-name" }, text), remove);
  }

  function archiveRow() {
    const remove = () => {
      archive = null;
      changed();
    };
    return el(
      "div",
      { class: "group" },
      el(
        "div",
        { class: "group-name" },
        el("strong", {}, archive.name),
        el("span", { class: "hint" }, ` ${(archive.size / 1e6).toFixed(1)} MB; its folders name the classes`),
      ),
      el(
        "button",
        { type: "button", class: "small", "aria-label": `Remove ${archive.name}`, onclick: remove },
        "Remove",
      ),
    );
  }

  function groupRow(folder, staged, at) {
    const title = folder === "" ? "Single files" : folder;
    const id = `group-${at}`;
    const select = el(
      "select",
      { id, onchange: () => ((staged.label = select.value), changed(), document.getElementById(id).focus()) },
      el("option", { value: "" }, "Choose a class"),
      classes.map((name) => el("option", { value: name }, name)),
      el("option", { value: UNLABELLED }, "Without a label"),
    );
    select.value = staged.label;
    const remove = () => {
      staged.urls.forEach((url) => URL.revokeObjectURL(url));
      groups.delete(folder);
      changed();
    };
    return el(
      "div",
      { class: `group${staged.label === "" ? " open" : ""}` },
      el(
        "div",
        { class: "group-name" },
        el("strong", {}, title),
        el("span", { class: "hint" }, ` ${plural(staged.files.length, "image")}`),
      ),
      el(
        "div",
        { class: "thumbnails" },
        staged.files.slice(0, THUMBNAILS).map((file, i) => thumbnail(staged, file, i)),
      ),
      el("label", { for: id, class: "hidden" }, `Class of ${title}`),
      select,
      el("button", { type: "button", class: "small", "aria-label": `Remove ${title}`, onclick: remove }, "Remove"),
    );
  }

  function thumbnail(staged, file, at) {
    staged.urls[at] ??= URL.createObjectURL(file);
    return el("img", { src: staged.urls[at], alt: file.name, width: 32, height: 32 });
  }

  const skipped = () =>
    el(
      "p",
      { class: "hint" },
      `Left out, because they are not images: ${refused.slice(0, 5).join(", ")}${refused.length > 5 ? ", \u2026" : ""}`,
    );

  /** Return the parts of the request and the file that each image is, or what is still missing. */
  function payload() {
    const form = new FormData();
    const sources = { images: [], unlabelled: [] };
    const labels = [];
    for (const [folder, { files, label }] of groups) {
      if (label === "") {
        return { missing: `Choose a class for ${folder === "" ? "the single files" : `the folder ${folder}`}.` };
      }
      const part = label === UNLABELLED ? "unlabelled" : "images";
      for (const file of files) {
        form.append(part, file, file.name);
        sources[part].push(folder === "" ? file.name : `${folder}/${file.name}`);
        if (part === "images") {
          labels.push(label);
        }
      }
    }
    if (archive !== null && labels.length > 0) {
      return { missing: "An archive and labelled images cannot go together: remove one of them." };
    }
    if (archive !== null) {
      form.append("archive", archive, archive.name);
    }
    if (labels.length > 0) {
      form.append("labels", JSON.stringify(labels));
    }
    return { form, sources };
  }

  /** Take the classes of another deployment; what was staged goes with the earlier one. */
  function setClasses(names) {
    classes = names;
    clear();
  }

  return { zone, list, payload, clear, setClasses, isEmpty: () => groups.size === 0 && archive === null };
}
