// Light or dark, before anything is drawn: a plain script, since modules run too late.
"use strict";

(() => {
  const KEY = "lfm2.theme";
  const CHOICES = ["system", "light", "dark"];

  function read() {
    try {
      const kept = localStorage.getItem(KEY);
      return CHOICES.includes(kept) ? kept : "system";
    } catch {
      return "system"; // storage is blocked
    }
  }

  let choice = read();

  function apply() {
    document.documentElement.dataset.theme = choice;
    window.dispatchEvent(new Event("lfm2-theme"));
  }

  /** The choice, and a way to go to the next one; app.js binds its button to them. */
  window.lfm2Theme = {
    get choice() {
      return choice;
    },
    next() {
      choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
      apply();
      try {
        localStorage.setItem(KEY, choice);
      } catch {
        // It holds until the page closes.
      }
    },
  };
  // Another tab chose.
  window.addEventListener("storage", (event) => {
    if (event.key !== KEY) return;
    choice = read();
    apply();
  });
  apply();
})();
