"""Which tile a kernel takes on which device."""
