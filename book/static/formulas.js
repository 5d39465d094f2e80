// KaTeX writes each formula; without a script its LaTeX can be read.
for (const each of document.querySelectorAll(".math")) {
  katex.render(each.textContent, each, { displayMode: each.tagName === "DIV", throwOnError: false });
}
