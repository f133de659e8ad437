"""What the learners fit: the label less its trend (`trend`), or normal scores of that (`rank_gauss`)."""
