"""The ensemble: the weights of learners and members (`weights`), and the text model as a member (`members`)."""
