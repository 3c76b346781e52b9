"""Facts about the machine: processor, driver, clocks, power and energy."""
