"""A page on this machine that answers "what if": `make app`. The same answers as JSON over HTTP: docs/app.md."""
