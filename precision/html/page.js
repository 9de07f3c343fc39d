// One variant's figures at a time, where there are several; without scripts all of them are shown.
const chooser = document.getElementById("chooser");
if (chooser) {
  const select = chooser.querySelector("select");
  const show = () => {
    for (const figure of document.querySelectorAll("figure[data-variant]")) {
      figure.hidden = select.value !== "" && figure.dataset.variant !== select.value;
    }
  };
  select.addEventListener("change", show);
  chooser.hidden = false;
  show();
}
