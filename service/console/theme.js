// Runs before anything is painted: the theme that was chosen here before, else the system's.
const chosen = localStorage.getItem("saucier-theme");
if (chosen === "light" || chosen === "dark") {
  document.documentElement.dataset.theme = chosen;
}
