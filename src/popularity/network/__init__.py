"""The prototype network of the paper, Sec 3: prompts, cross-modal attention over class prototypes, losses."""
