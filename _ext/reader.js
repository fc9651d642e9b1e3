/* What the book remembers of its reader, on this computer only: the pages whose
   self-check was answered all right. Loaded on every page, for all show the ticks. */
(() => {
  "use strict";
  const root = new URL(document.documentElement.dataset.content_root || "./", location);
  const page = (href) => "tokrl:" + new URL(href, location).pathname
    .slice(root.pathname.length);
  const recall = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
  const keep = (key, value) => { try { localStorage.setItem(key, value); } catch { /* private */ } };

  const check = document.querySelector(".selfcheck");
  const result = check?.querySelector(".check-result");
  const questions = check ? [...check.querySelectorAll("fieldset")] : [];

  function count() {
    const chosen = questions.map((q) => q.querySelector("input:checked"));
    const right = chosen.filter((input) => input?.value === "right").length;
    const answered = chosen.filter(Boolean).length;
    if (!answered) return;
    result.textContent = right + " of " + questions.length + " right" +
      (answered < questions.length ? ", " + (questions.length - answered) + " to go." : ".");
    if (right === questions.length) keep(page(location.href), "done");
  }

  for (const input of check ? check.querySelectorAll("input") : []) {
    input.addEventListener("change", () => {
      count();
      mark();
    });
  }

  function mark() {
    for (const link of document.querySelectorAll(".bd-links a.reference.internal")) {
      if (recall(page(link.href)) !== "done" || link.querySelector(".page-done")) continue;
      const tick = document.createElement("span");
      tick.className = "page-done";
      tick.innerHTML = ' <span aria-hidden="true">\u2713</span>' +
        '<span class="sr-only">, self-check done</span>';
      link.append(tick);
    }
  }
  mark();

  // What the theme leaves without a name, or names otherwise than it shows.
  for (const summary of document.querySelectorAll(".bd-links details > summary")) {
    const chapter = summary.closest("li").querySelector("a").textContent.trim();
    summary.setAttribute("aria-label", "Sections of " + chapter);
  }
  for (const button of document.querySelectorAll(".search-button-field")) {
    button.removeAttribute("aria-label");
  }

  for (const button of document.querySelectorAll("button.run-copy")) {
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(button.dataset.text);
        button.textContent = "Copied";
      } catch {
        button.textContent = button.dataset.text;
      }
    });
  }
})();
