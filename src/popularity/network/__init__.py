"""The prototype network of method.md, Sec 3: prompts, cross-modal attention over class prototypes, losses."""
