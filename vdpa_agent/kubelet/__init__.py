"""What the kubelet and its plugins see of the devices: a directory for each, which pods get mounted."""
