"""The host agent: joins the registry's view and the kernel, and tells how that goes."""
