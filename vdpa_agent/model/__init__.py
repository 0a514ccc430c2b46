"""The pure heart: values and rules, without asyncio, I/O or third-party packages."""
