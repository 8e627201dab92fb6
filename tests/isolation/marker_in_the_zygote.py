"""A module with a secret: whatever a zygote imports, every child can read."""

PLANTED = "Xq7vKz-module-0000 Xq7vKz-module-0000"
