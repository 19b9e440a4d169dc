//! The `redis` crate, blocking and asynchronous.
use redis::{AsyncCommands, Commands};

use super::World;

#[test]
fn redis_crate() {
    let world = World::new();
    for protocol in ["", "?protocol=resp3"] {
        let client = redis::Client::open(format!("redis://{}/0{protocol}", world.fence.addr())).unwrap();
        let mut connection = client.get_connection().unwrap();
        let _: () = connection.set("k", "v").unwrap();
        assert_eq!(connection.get::<_, String>("k").unwrap(), "v");
        assert_eq!(connection.get::<_, Option<String>>("missing").unwrap(), None);
        let _: () = connection.hset_multiple("h", &[("a", 1), ("b", 2)]).unwrap();
        let map: std::collections::BTreeMap<String, i64> = connection.hgetall("h").unwrap();
        assert_eq!(map, [("a".to_owned(), 1), ("b".to_owned(), 2)].into());
        let (a, b): (i64, String) = redis::pipe().atomic().incr("n", 5).get("k").query(&mut connection).unwrap();
        assert!(a % 5 == 0 && b == "v");
        let moved: i64 = redis::transaction(&mut connection, &["n"], |connection, pipe| {
            let n: i64 = connection.get("n")?;
            pipe.set("n", n + 1).ignore().get("n").query(connection).map(|values: Option<(i64,)>| values.map(|(n,)| n))
        })
        .unwrap();
        assert_eq!(moved % 5, 1);
        let mut names: Vec<String> = connection.scan_match::<_, String>("*").unwrap().map(Result::unwrap).collect();
        names.sort();
        assert_eq!(names, ["h", "k", "n"]);
        let popped: Option<(String, String)> = connection.blpop("nothing", 0.001).unwrap();
        assert_eq!(popped, None);
        let error = connection.incr::<_, _, i64>("k", 1).unwrap_err();
        assert!(error.to_string().contains("not an integer"), "{error}");
        let _: () = connection.del(&["h", "k", "n"]).unwrap();
    }
    world.foreign_keys_are_untouched();
}

#[test]
fn redis_crate_asynchronous() {
    let world = World::new();
    let client = redis::Client::open(format!("redis://{}", world.fence.addr())).unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for i in 0..100 {
            let mut connection = connection.clone();
            tasks.spawn(async move {
                for round in 0..20 {
                    let _: () = connection.set(format!("k{i}"), round).await.unwrap();
                    assert_eq!(connection.get::<_, i32>(format!("k{i}")).await.unwrap(), round);
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        let mut connection = connection;
        assert_eq!(redis::cmd("DBSIZE").query_async::<i64>(&mut connection).await.unwrap(), 100);
    });
    world.foreign_keys_are_untouched();
}
