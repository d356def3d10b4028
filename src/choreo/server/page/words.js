"use strict";
// Words of a revision, marked against those of the answer before it. The page of `choreo watch` loads this file too.

const MOST = 2e6; // cells of the table; longer texts are shown without marks

// The longest common subsequence of words stays.
function marked(from, to) {
  const words = /\s*\S+/g; // each with the space before it, so that spaces alone never match
  const a = from.match(words) || [], b = to.match(words) || [];
  const made = document.createDocumentFragment();
  if (a.length * b.length > MOST) { made.append(to); return made; }
  const best = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { made.append(a[i]); i++; j++; }
    else if (i < a.length && (j === b.length || best[i + 1][j] >= best[i][j + 1])) made.append(word("del", a[i++]));
    else made.append(word("ins", b[j++]));
  }
  return made;
}

function word(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}
