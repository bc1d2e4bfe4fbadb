"""Where answers come from: a live teacher, or a cache of one."""
