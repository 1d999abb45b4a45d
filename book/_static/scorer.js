// Search: pages and their headings before the members of the package, and whole words first.
var Scorer = {
  // The reference comes after what the book says of the same words.
  score: ([docname, , , , score]) => (docname.startsWith("book/api/") ? score - 100 : score),
  objNameMatch: 6,
  objPartialMatch: 1,
  objPrio: { 0: 2, 1: 1, 2: -5 },
  objPrioDefault: 0,
  title: 40,
  partialTitle: 12,
  term: 5,
  partialTerm: 0.1,
};
