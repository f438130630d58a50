"""Claims, the runner that judges them, and the testbeds they run on."""
