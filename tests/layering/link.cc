// Linked with one room as a whole; that it links is the test.
int main() { return 0; }
