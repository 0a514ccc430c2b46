"""What this node is: its sysfs, processes and unix sockets, read without harm to anybody."""
