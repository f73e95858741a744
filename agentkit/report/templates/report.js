// The page works without this: it adds a way back from a highlighted passage to what quotes it.
(() => {
  const pane = document.getElementById("text");
  const placesOf = (mark) => [...mark.classList].filter((name) => /^p\d+$/.test(name));
  let last = null;

  pane.addEventListener("click", (event) => {
    const mark = event.target.closest("mark");
    if (!mark || String(getSelection())) return;
    const links = placesOf(mark).flatMap((id) => [
      ...document.querySelectorAll(`#summary a.quote[href="#${id}"]`),
    ]);
    if (!links.length) return;
    const next = links[(links.indexOf(last) + 1) % links.length];
    last = next;
    for (let box = next.closest("details"); box; box = box.parentElement.closest("details")) {
      box.open = true;
    }
    next.scrollIntoView({ block: "center" });
    next.focus({ preventScroll: true });
    next.classList.remove("lit");
    void next.offsetWidth;
    next.classList.add("lit");
  });

  // Following the same link twice flashes its place again.
  document.getElementById("summary").addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#p"]');
    if (!link || link.hash !== location.hash) return;
    for (const mark of pane.querySelectorAll(`mark.${link.hash.slice(1)}`)) {
      mark.style.animation = "none";
      void mark.offsetWidth;
      mark.style.animation = "";
    }
  });
})();
