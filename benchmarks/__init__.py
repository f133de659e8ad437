"""Side-by-side measurements; each prints a table. Run them from the repository's root."""

import stages  # noqa: F401  the library of this working tree wins over an installed one, as for the stages
