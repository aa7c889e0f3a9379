"""Starting the runs of a study: on this machine, on a cluster, on a rented machine."""
