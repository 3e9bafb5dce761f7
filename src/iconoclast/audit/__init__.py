"""What somebody's edit changed, from the weights alone: pairs of tensors, findings, constructions, the document."""
