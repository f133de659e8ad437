"""The ensemble: weights of learners (`weights`), of members (`greedy`), and their mean (`members`)."""
