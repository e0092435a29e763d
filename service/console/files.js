// Files from a drop or a choice, each with the folder it came from: the folder is the class.

// What the service reads; a test compares them with it.
const ARCHIVES = [".zip", ".tar", ".tgz", ".tar.gz"];
const PICTURES = [".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"];
const TYPES = ["image/bmp", "image/gif", "image/jpeg", "image/png", "image/tiff", "image/webp"];

export const PICTURES_ACCEPTED = [...TYPES, ...PICTURES].join(",");
export const ACCEPTED = [PICTURES_ACCEPTED, ".zip", ".tar", ".tgz", ".gz"].join(","); // browsers look at the last suffix

export const isArchive = (file) => endsWithOne(file, ARCHIVES);
export const isPicture = (file) => TYPES.includes(file.type) || endsWithOne(file, PICTURES);

const endsWithOne = (file, suffixes) => suffixes.some((suffix) => file.name.toLowerCase().endsWith(suffix));

/** Return the files of an input: { file, folder }, the folder that a picture lies in or "". */
export function chosenFiles(input) {
  return [...input.files].map((file) => ({ file, folder: parent(file.webkitRelativePath) }));
}

const parent = (path) => path.split("/").slice(0, -1).at(-1) ?? "";

/** Return the files of a drop, those in folders included. Call it before anything is awaited. */
export async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (entries.length === 0) {
    return [...transfer.files].map((file) => ({ file, folder: "" }));
  }
  const found = await Promise.all(entries.map((entry) => walk(entry, "")));
  return found.flat();
}

async function walk(entry, folder) {
  if (entry.isFile) {
    return [{ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), folder }];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
    if (some.length === 0) {
      break;
    }
    found.push(...(await Promise.all(some.map((child) => walk(child, entry.name)))));
  }
  return found.flat();
}

/** Let an element take drops; `take` gets the files. */
export function acceptDrops(node, take) {
  let depth = 0;
  node.addEventListener("dragenter", (event) => {
    event.preventDefault();
    depth += 1;
    node.classList.add("over");
  });
  node.addEventListener("dragover", (event) => event.preventDefault());
  node.addEventListener("dragleave", () => {
    depth -= 1;
    node.classList.toggle("over", depth > 0);
  });
  node.addEventListener("drop", async (event) => {
    event.preventDefault();
    depth = 0;
    node.classList.remove("over");
    take(await droppedFiles(event.dataTransfer));
  });
}

/** Say if the file is one that systems leave in folders. */
export function isHiddenFile(file) {
  return file.name.startsWith(".") || file.name === "Thumbs.db";
}
